"""``qwen3q eval`` and ``qwen3q report`` as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gguf import GGUFReader
from report_example import EVERYTHING, report, row

from qwen3q.evaluate.suites import SUITES, read_suite
from qwen3q.models.source import resolve
from qwen3q.plan.gguf_types import FILE_TYPES
from qwen3q.quantize.run import QuantizeOptions, quantize_gguf

COMMON = ("--context", "128", "--max-chunks", "2", "--threads", "1")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    types = [FILE_TYPES[name] for name in ("BF16", "Q8_0", "Q2_K")]
    folder = tmp_path_factory.mktemp("ggufs")
    made = quantize_gguf(resolve("demo"), types, folder, QuantizeOptions(threads=2))
    return {kind.name: artefact.path for kind, artefact in zip(types, made, strict=True)}


def test_artefacts_against_their_float_model(cli, files, tmp_path):
    out = tmp_path / "out"
    reference = ("--reference", files["BF16"])
    done = cli("eval", files["Q8_0"], files["Q2_K"], *reference, *COMMON, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert json.loads((out / "report.json").read_text()) == printed
    assert [row["format"] for row in printed["results"]] == ["gguf:Q8_0", "gguf:Q2_K"]
    assert [row["file_bytes"] for row in printed["results"]] == [
        os.path.getsize(files["Q8_0"]),
        os.path.getsize(files["Q2_K"]),
    ]
    names = {path.name for path in out.iterdir()}
    assert {name for name in names if not name.endswith(".measured.json")} == {
        "report.json",
        "report.md",
        "report.html",
        "reference.logits",
    }
    assert len(names) == 4 + 2
    merged = tmp_path / "merged"
    done = cli("report", out / "report.json", out / "report.json", "--out", merged)
    assert done.returncode == 0, done.stderr
    assert "Q2_K" in done.stdout
    assert json.loads((merged / "report.json").read_text()) == printed


def test_files_of_one_name_are_told_apart(cli, files, tmp_path):
    copies = [tmp_path / kind / "model.gguf" for kind in ("Q8_0", "Q2_K")]
    for copy in copies:
        copy.parent.mkdir()
        copy.symlink_to(files[copy.parent.name])
    done = cli("eval", *copies, files["Q8_0"], "--reference", files["BF16"], *COMMON, "--json")
    assert done.returncode == 0, done.stderr
    assert {row["artefact"]: row["format"] for row in json.loads(done.stdout)["results"]} == {
        "model in Q8_0": "gguf:Q8_0",
        "model in Q2_K": "gguf:Q2_K",
        files["Q8_0"].stem: "gguf:Q8_0",
    }


@pytest.mark.parametrize(("context", "noted"), [(2048, False), (2049, True)])
def test_a_context_beyond_the_models_own_is_told(cli, files, context, noted):
    text = ("--context", context, "--max-chunks", "1", "--threads", "1")
    done = cli("eval", files["Q8_0"], "--reference", files["BF16"], *text)
    assert done.returncode == 0, done.stderr
    assert ("beyond the 2,048 that" in done.stderr) is noted


def test_the_gate_has_its_own_exit_code(cli, files):
    arguments = ("--gate", "--gate-level", "basic", "--gate-questions", "5", "--max-tokens", "150")
    done = cli("eval", files["Q2_K"], "--reference", files["BF16"], *COMMON, *arguments)
    assert done.returncode == 3, done.stderr
    assert "fail" in done.stdout
    assert f"The gate failed: answers of {files['Q2_K'].stem} got worse." in done.stderr


def test_the_quick_suite_measures_everything(cli, files, tmp_path):
    arguments = ("--reference", files["BF16"], "--suite", "quick", "--threads", "1", "--json")
    done = cli("eval", files["Q8_0"], *arguments)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["runs"][0]["reference"]["chunks"] == 8
    assert {row["mode"] for row in report["gate"]} == {"thinking", "plain"}
    assert {row["phase"] for row in report["speed"]} == {"prefill", "decode"}


def test_a_suite_takes_another_text(cli, files, tmp_path):
    text = tmp_path / "fox.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 400)
    arguments = ("--reference", files["BF16"], "--suite", "quick", "--threads", "1", "--json")
    done = cli("eval", files["Q8_0"], *arguments, "--text", text, "--max-chunks", "2")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["runs"][0]["text"]["name"] == "fox.txt"
    assert report["runs"][0]["reference"]["context"] == read_suite("quick").text.context
    assert report["runs"][0]["reference"]["chunks"] == 2
    assert report["gate"]
    assert report["speed"]


def test_every_suite_reads():
    suites = [read_suite(name) for name in SUITES]
    questions = [suite.gate.each for suite in suites]
    assert questions == sorted(questions)
    assert suites[2].gate.needle_words > 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("demo", "--reference", "demo", "--suite", "huge"), 2, "'huge'"),
        (("demo", "--reference", "demo", "--contribute", "rows"), 2, "nothing is timed"),
        (("nothing-here", "--reference", "demo"), 1, "nothing-here"),
        (("demo", "--reference", "demo", "--backend", "gpu"), 2, "'gpu'"),
        (("demo", "--reference", "demo", "--gate-level", "hard"), 2, "'hard'"),
        (("demo", "--reference", "demo", "--task-fewshot", "0"), 2, "--task-fewshot 0 names no"),
        (("demo", "--reference", "demo", "--tasks", ""), 2, "--tasks is empty."),
        (("demo", "--reference", "demo", "--text", "/nowhere.txt"), 2, "/nowhere.txt"),
        (("demo", "--reference", "demo", "--backend", "llama"), 1, "--backend torch"),
        (("speed", "demo", "--prompt", "0"), 2, "A prompt of 0 tokens"),
    ],
)
def test_mistakes_are_explained(cli, arguments, code, says):
    done = cli("eval", *arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_folders_are_measured_without_llama_cpp():
    code = (
        "import sys; sys.modules['llama_cpp'] = None; from qwen3q.cli.app import main;"
        "sys.argv = ['qwen3q', 'eval', 'demo', '--reference', 'demo', '--max-chunks', '1',"
        "'--context', '64', '--json']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["kl_mean"] < 1e-5


@pytest.mark.parametrize("words", [["eval"], ["eval", "speed"]])
def test_what_is_no_device_is_a_usage_error(cli, words):
    reference = ["--reference", "demo"] if words == ["eval"] else []
    run = cli(*words, "demo", *reference, "--device", "gpu")
    assert run.returncode == 2
    assert "'gpu' is no device" in run.stderr


def test_a_read_report_shows_every_table(cli, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(EVERYTHING))
    done = cli("report", path)
    assert done.returncode == 0, done.stderr
    for said in ("Q2_K", "Answers with thinking", "gsm8k", "prefill", "clients"):
        assert said in done.stdout


def test_bits_per_weight_are_those_of_the_tensors(cli, files):
    done = cli("eval", files["Q2_K"], "--reference", files["BF16"], *COMMON, "--json")
    (measured,) = json.loads(done.stdout)["results"]
    tensors = GGUFReader(files["Q2_K"]).tensors
    bits = 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)
    assert measured["bits_per_weight"] == pytest.approx(bits, abs=1e-4)
    plan = json.loads(cli("quantize", "demo", "--to", "gguf:Q2_K", "--dry-run", "--json").stdout)
    assert f'"bits_per_weight": {measured["bits_per_weight"]}' in json.dumps(plan)


def test_perplexity_takes_the_options_of_eval(cli, files, tmp_path):
    options = ("--context", "128", "--scored", "full", "--max-chunks", "1", "--json")
    done = cli("eval", "perplexity", files["Q8_0"], *options)
    assert done.returncode == 0, done.stderr
    (measured,) = json.loads(done.stdout)["results"]
    assert (measured["scored"], measured["tokens"]) == ("full", 127)
    done = cli("eval", "perplexity", tmp_path)
    assert done.returncode == 2
    assert f"`qwen3q eval {tmp_path} --reference MODEL`" in done.stderr


def test_no_column_is_lost_on_a_narrow_terminal(cli, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(EVERYTHING))
    wide, narrow = (cli("report", path, COLUMNS=columns).stdout for columns in ("200", "80"))
    tables = [line for line in narrow.splitlines() if line and line[0] in "┏┃┡│└"]
    assert tables
    assert max(map(len, tables)) <= 80
    heads = {word for line in wide.splitlines() if line[:1] == "┃" for word in line[1:].split()}
    assert heads <= set(narrow.split())


def test_a_folder_without_a_card_is_told_before_anything_is_measured(cli, demo_folder, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in demo_folder.iterdir():
        if path.name != "README.md":
            (folder / path.name).symlink_to(path)
    out = tmp_path / "out"
    words = (folder, "--reference", "demo", *COMMON, "--update-card", "--out", out)
    done = cli("eval", *words)
    assert done.returncode == 2
    assert "There is no model card at" in done.stderr
    assert not out.exists()


def test_a_report_that_is_cut_off_or_has_no_place_is_explained(cli, tmp_path):
    whole, cut = tmp_path / "whole.json", tmp_path / "cut.json"
    whole.write_text(json.dumps(EVERYTHING))
    cut.write_text(whole.read_text()[:3000])
    done = cli("report", cut)
    assert done.returncode == 2
    assert "not all of it" in done.stderr
    assert "--out DIR" in done.stderr
    done = cli("report", whole, "--out", cut)
    assert done.returncode == 1
    assert f"{cut}: it is a file" in done.stderr


def test_perplexity_looks_for_all_models_before_it_measures_one(cli, demo_folder, tmp_path):
    """The first can't be loaded, and is not tried."""
    broken = tmp_path / "broken.gguf"
    broken.write_text("nothing")
    for other, said in (
        (demo_folder, "is a folder"),
        (tmp_path / "none.gguf", "There is no GGUF file at"),
    ):
        refused = cli("eval", "perplexity", broken, other)
        assert refused.returncode > 0
        assert said in refused.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a system without the signals")
@pytest.mark.parametrize("ending", ["SIGTERM", "SIGHUP"])
def test_a_run_that_is_ended_removes_what_it_was_writing(files, tmp_path, ending):
    kept = tmp_path / "kept"
    kept.mkdir()
    words = ["eval", files["Q2_K"], "--reference", files["BF16"], *COMMON, "--gate"]
    run = subprocess.Popen(
        [sys.executable, "-m", "qwen3q", *map(str, words)],
        env={**os.environ, "TMPDIR": str(kept)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while run.poll() is None and not list(kept.glob("qwen3q-eval-*/reference.logits")):
        time.sleep(0.01)
    number = getattr(signal, ending)
    run.send_signal(number)
    _, said = run.communicate(timeout=120)
    assert (run.returncode, said) == (128 + number, "Interrupted.\n")
    assert list(kept.iterdir()) == []


@pytest.mark.parametrize("columns", [45, 60, 80])
def test_names_break_at_hyphens_and_are_in_every_table(cli, tmp_path, columns):
    names = ["qwen3-demo-GPTQ-Int4", "qwen3-demo-Q4_K_M", "qwen3-demo-AWQ"]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report(*(row(name, 5_000_000, 0.01) for name in names))))
    done = cli("report", path, COLUMNS=str(columns))
    assert done.returncode == 0, done.stderr
    tables = done.stdout.split("┏")[1:]
    for table in tables:
        lines = [line for line in table.splitlines() if line[:1] in "┃│"]
        cells = [line[1:].replace("┃", "│").split("│")[0].strip() for line in lines]
        told = "".join(cells)
        assert told.startswith("artefact")
        assert all(name in told for name in names), told
        assert {"GPTQ-Int4", "Int4"} & set(cells) or "qwen3-demo-GPTQ-Int4" in cells
        assert {"Q4_K_M", "qwen3-demo-Q4_K_M"} & set(cells)
    assert max(map(len, done.stdout.split("└")[0].splitlines())) <= columns
    heads = {word for table in tables for word in table.splitlines()[1].split()}
    assert {"size", "perplexity", "top-1"} <= heads


@pytest.mark.parametrize(
    ("verb", "option", "default"),
    [("speed", "--prompt", "512"), ("speed", "--batch", "1"), ("endpoint", "--concurrency", "1,")],
)
def test_the_help_of_repeatable_options_tells_the_default(cli, verb, option, default):
    text = cli("eval", verb, "--help", COLUMNS="160").stdout
    (line,) = [line for line in text.splitlines() if f" {option} " in line]
    assert f"Default: {default}" in line


def test_what_the_disk_does_not_hold_is_told_with_its_size(cli, files, tmp_path):
    import resource

    words = ["eval", files["Q2_K"], "--reference", files["BF16"], *COMMON]
    done = subprocess.run(
        [sys.executable, "-m", "qwen3q", *map(str, words), "--out", str(tmp_path / "out")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    # 2 chunks of 128, of which the 63 tokens after the first half are scored; 8192 tokens
    assert f"take up to {2 * 2 * 63 * 8192 / 1e9:.2f} GB" in done.stderr
    assert "--max-chunks" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_report_of_another_version_is_told_as_such(cli, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**EVERYTHING, "schema": "qwen3q-eval/2"}))
    done = cli("report", path)
    assert done.returncode == 2
    assert "has schema qwen3q-eval/2, and this release reads qwen3q-eval/1" in done.stderr
