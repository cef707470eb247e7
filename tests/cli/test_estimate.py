"""``qwen3q estimate`` and ``qwen3q fit`` as a user runs them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3q.cli.estimate_options import choose_gpus
from qwen3q.errors import UsageError
from qwen3q.llama.oracle import Load, dry_run, write_header
from qwen3q.models.catalog import find_release
from qwen3q.plan.gguf import plan_gguf
from qwen3q.plan.gguf_types import file_type


def qwen3q(*arguments: str, width: int | None = None) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    if width is not None:
        env["COLUMNS"] = str(width)
    return subprocess.run(
        [sys.executable, "-m", "qwen3q", *arguments],
        capture_output=True, text=True, check=False, env=env,
    )  # fmt: skip


def json_of(*arguments: str) -> dict:
    done = qwen3q(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_run_in_json() -> None:
    found = json_of(
        "estimate", "qwen3-32b", "--quant", "gguf:Q4_K_M", "--context", "32768", "--kv", "q8_0",
        "--gpu", "RTX 4090",
    )  # fmt: skip
    [run] = found["estimates"]
    assert (run["model"], run["engine"], run["context"]) == ("Qwen3-32B", "llama.cpp", 32768)
    assert (
        run["weights_bytes"] + run["kv_bytes"] + run["compute_bytes"] + run["overhead_bytes"]
        == run["total_bytes"]
    )
    assert run["kv_bytes"] == 64 * 32768 * 2 * 8 * 128 * 34 // 32
    assert run["fits"] is True
    assert run["max_context"] >= 32768
    assert 20 < run["decode_tokens_per_second"] < 60
    assert run["uncertainty_bytes"] > 0
    assert [device["name"] for device in run["devices"]] == ["CUDA0", "CPU"]
    verdicts = {gpu["name"]: gpu["fits"] for gpu in found["gpus"]}
    assert verdicts["GeForce RTX 4090"]
    assert not verdicts["GeForce RTX 4080"]


def test_a_table_of_every_quantization() -> None:
    found = json_of("estimate", "qwen3-8b")
    contexts = {run["context"] for run in found["estimates"]}
    assert contexts == {1024, 8192, 32768, 65536, 131072}
    formats = {run["quantization"] for run in found["estimates"]}
    assert {"bf16", "fp8", "gguf:Q4_K_M", "gptq:int4", "awq:int4", "int8", "int4"} <= formats
    assert {"bnb:nf4", "bnb:int8"} <= formats
    text = qwen3q("estimate", "qwen3-8b").stdout
    assert "gguf:Q4_K_M" in text
    assert "128k" in text
    assert "RTX 5060" in text


def test_a_processor_takes_what_llama_cpp_says(tmp_path: Path) -> None:
    """Its buffers without a GPU, from the file that the format's plan describes."""
    release = find_release("qwen3-1.7b")
    assert release is not None
    header = tmp_path / "model.gguf"
    write_header(header, release.config, plan_gguf("", release.config, file_type("Q4_K_M")))
    truth = dry_run(header, Load(context=16384, type_k="q8_0", type_v="q8_0"))["CPU"]
    [run] = json_of(
        "estimate", "qwen3-1.7b:Q4_K_M", "--gpu", "none", "--vram", "16GiB", "--context", "16k",
        "--kv", "q8_0",
    )["estimates"]  # fmt: skip
    logits = 4 * release.config.vocab_size
    found = (run["weights_bytes"], run["kv_bytes"], run["compute_bytes"] - logits)
    assert found == (truth.model, truth.context, truth.compute)
    [cpu] = run["devices"]
    assert (cpu["name"], cpu["gpu"], cpu["usable_bytes"]) == ("CPU", None, 16 << 30)
    for spare, verdict in ((-1, "does not fit"), (0, "tight"), (run["uncertainty_bytes"], "fits")):
        ram = f"{run['total_bytes'] + spare}B"
        again = json_of(
            "estimate", "qwen3-1.7b:Q4_K_M", "--gpu", "none", "--vram", ram, "--context", "16k",
            "--kv", "q8_0",
        )["estimates"][0]  # fmt: skip
        assert again["verdict"] == verdict


def test_what_fits_a_processor_is_run_by_llama_cpp_and_takes_less_than_the_ram() -> None:
    runs = json_of("fit", "--gpu", "cpu", "--vram", "6GiB")["estimates"]
    assert {run["engine"] for run in runs} == {"llama.cpp"}
    assert all(run["total_bytes"] <= 6 << 30 for run in runs)
    assert any(run["model"] == "Qwen3-8B" for run in runs)
    table = qwen3q("estimate", "qwen3-8b", "--gpu", "none", "--vram", "6GiB").stdout
    assert "6GiB of RAM" in table
    assert "vllm" not in table


def test_fit_alone_is_about_the_machine_it_runs_on(tmp_path: Path) -> None:
    """Here without a GPU, as no driver's tool is found."""
    done = subprocess.run(
        [sys.executable, "-m", "qwen3q", "fit", "--json"],
        capture_output=True, text=True, check=False, env={**os.environ, "PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["notes"][0].startswith("No GPU was found here")
    [part] = found["gpus"]
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert part["class"] == "processor"
    assert 0 < part["usable_bytes"] < whole
    assert all(run["total_bytes"] <= part["usable_bytes"] for run in found["estimates"])


def test_what_gpus_here_leave_to_the_processor_is_at_its_memorys_speed(tmp_path: Path) -> None:
    """The GPU is one that a stand-in for the driver's tool tells of."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 3060, 12288, 12000'\n")
    tool.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}

    def notes(*arguments: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "qwen3q", "estimate", "qwen3-30b-a3b:Q4_K_M", "--json",
             *arguments],
            capture_output=True, text=True, check=False, env=env,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        return found["notes"] + found["estimates"][0]["notes"]

    def rate(found: list[str], words: str) -> str:
        [[number]] = [re.findall(rf"{words} (\d+) GB/s", note) for note in found if words in note]
        return number

    here = notes("--gpu", "auto", "--offload-experts", "all")
    assert rate(here, "part of the speed assumes") == rate(here, "taken to reach")
    elsewhere = notes("--gpu", "RTX 3060 12GB", "--offload-experts", "all")
    assert rate(elsewhere, "part of the speed assumes") == "55"
    assert not any("was read just now" in note for note in notes("--gpu", "auto"))


def test_two_gpus_and_several_sequences() -> None:
    found = json_of(
        "estimate", "qwen3-32b", "--quant", "gguf:Q6_K", "--gpu", "2x RTX 3090", "--parallel", "4"
    )
    [run] = found["estimates"]
    assert [device["name"] for device in run["devices"]] == ["CUDA0", "CUDA1", "CPU"]
    assert run["kv_bytes"] == 4 * 64 * 8192 * 2 * 8 * 128 * 2
    vllm = json_of("estimate", "qwen3-32b", "--quant", "awq:int4", "--gpu", "2x RTX 3090")
    [run] = vllm["estimates"]
    assert run["engine"] == "vllm"
    assert run["kv_tokens"] > run["context"]


def test_fit_in_json_and_text() -> None:
    found = json_of("fit", "--vram", "12GiB", "--context", "16k")
    assert all(run["fits"] for run in found["estimates"])
    assert found["estimates"][0]["command"].startswith("qwen3q quantize Qwen/")
    assert "best expected quality" in qwen3q("fit", "--gpu", "3060", "--context", "16384").stdout


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("estimate", "qwen3-8b", "--gpu", "RTX 4091"), "RTX 4090"),
        (("estimate", "qwen3-8b", "--gpu", "2x CPU"), "--gpu none"),
        (("estimate", "qwen3-8b", "--gpu", "4090", "--gpu", "none"), "--gpu-layers"),
        (("fit", "--gpu", "none", "--vram", "8", "--vram", "8"), "Leave the others out"),
        (("estimate", "qwen3-8b", "--gpu", "none", "--gpu-layers", "3"), "name the GPU"),
        (("estimate", "qwen3-8b", "--gpu", "none", "--engine", "vllm"), "gguf:Q4_K_M"),
        (("estimate", "qwen3-8b", "--gpu", "none", "--quant", "awq:int4"), "gguf:Q4_K_M"),
        (("fit", "--gpu", "none", "--engine", "transformers"), "gguf:Q4_K_M"),
        (("fit", "--gpu", "none", "--kv", "fp8"), "f16, bf16, f32, q8_0, q5_1"),
        (("estimate", "qwen3-8b", "--kv", "q4_k"), "f16, bf16, f32, q8_0, q5_1"),
        (("fit", "--vram", "24", "--kv", "q4_k"), "f16, bf16, f32, q8_0, q5_1"),
        (("estimate", "qwen3-8b", "--context", "200000"), "131072"),
        (("estimate", "qwen3-8b", "--quant", "gguf:Q4_K_M", "--kv", "q4_k"), "q4_1"),
        (("estimate", "qwen3-8b", "--quant", "gguf:Q4_KM"), "Q4_K_M"),
        (("estimate", "qwen3-32b", "--quant", "awq:int4", "--gpu", "3x 3090"), "2 or 4"),
        (("estimate", "qwen3-8b", "--engine", "vlm"), "vllm"),
        (("estimate", "qwen3-8b", "--context", "long"), "32k"),
        (("estimate", "qwen3-8b", "--context", "1mk"), "32k"),
        (("estimate", "qwen3-8b", "--yarn", "inf"), "up to 4"),
        (("estimate", "qwen3-30b-a3b", "--offload-experts", "some"), "all"),
        (("estimate", "qwen3-8b", "--gpu", "99999999x RTX 4090"), '"2x RTX 4090"'),
        (("estimate", "qwen3-8b", "--quant", "gguf:Q4_K_M", "--gpu", "17x 4090"), "16 or fewer"),
        (("estimate", "qwen3-8b", "--quant", "awq:int4", "--gpu-layers", "10"), "gguf:Q4_K_M"),
        (("estimate", "qwen3-8b", "--engine", "vllm", "--ubatch", "64"), "gguf:Q4_K_M"),
        (
            (
                "estimate",
                "qwen3-8b",
                "--quant",
                "gguf:Q4_K_M",
                "--gpu-memory-utilization",
                "0.5",
            ),
            "awq:int4",
        ),
        (("estimate", "qwen3-8b", "--gpu-memory-utilization", "5"), "at most 1"),
        (("estimate", "qwen3-8b", "--quant", ""), "--quant gguf:Q4_K_M"),
        (("estimate", "qwen3-8b", "--kv", ""), "One of"),
        (("estimate", "qwen3-30b-a3b", "--offload-experts", "9999"), "0 to 48, or all"),
        (("estimate", "qwen3-8b", "--quant", "gguf:Q8_0", "--parallel", "257"), "--parallel 256"),
        (("fit", "--gpu", "4090", "--vram", "1GiB", "--vram", "1GiB"), "one for each"),
        (("fit", "--vram", "24GiB", "--min-speed", "10"), "Name the card too"),
        (("fit", "--gpu", "4090", "--min-speed", "nan"), "such as 10"),
        (("fit", "--gpu", "4090", "--min-speed", "-1"), "such as 10"),
        (("fit", "--gpu", "4090", "--context", "99999m"), "--context 1048576"),
        (("fit", "--gpu", "2x 4090", "--engine", "transformers"), "--engine vllm"),
        (("estimate", "qwen3-8b", "--gpu", "2x 4090", "--engine", "transformers"), "--engine vllm"),
    ],
)
def test_wrong_input_is_one_sentence_and_a_choice(arguments: tuple[str, ...], hint: str) -> None:
    done = qwen3q(*arguments)
    assert done.returncode == 2
    assert hint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
    assert "Traceback" not in done.stderr


def test_a_type_after_the_model_is_its_quantization() -> None:
    """As ``chat`` and ``eval`` take it."""
    whole = qwen3q("estimate", "qwen3-8b", "--quant", "gguf:Q4_K_M", "--json")
    short = qwen3q("estimate", "qwen3-8b:q4_k_m", "--json")
    assert whole.returncode == short.returncode == 0
    assert whole.stdout == short.stdout


def table(*arguments: str) -> dict[str, list[str]]:
    """The cells of each quantization's row."""
    lines = qwen3q("estimate", *arguments).stdout.splitlines()
    return {cells[0]: cells for line in lines if (cells := re.split(r" {2,}", line))[2:]}


def test_what_does_not_fit_has_no_speed() -> None:
    rows = table("qwen3-8b", "--gpu", "RTX 3060")
    assert rows["bf16"][-2:] == ["-", "-"]
    assert float(rows["gguf:Q4_K_M"][-1]) > 30
    [run] = json_of("estimate", "qwen3-8b", "--quant", "bf16", "--gpu", "RTX 3060")["estimates"]
    assert run["decode_tokens_per_second"] is None


def test_bits_and_size_are_the_same_in_the_table_and_of_one_run() -> None:
    one = qwen3q("estimate", "qwen3-8b", "--quant", "gguf:Q4_K_M").stdout
    bits, size = table("qwen3-8b")["gguf:Q4_K_M"][2:4]
    assert f"File: {size}, {bits} bits per weight." in one


def test_a_small_model_in_fitting_units_at_its_own_context() -> None:
    text = qwen3q("estimate", "demo", "--quant", "gguf:Q4_K_M").stdout
    assert "context 2,048" in text
    assert "YaRN" not in text
    assert "File: 5.28 MB" in text


def test_an_option_of_one_engine_keeps_only_its_rows_in_the_table() -> None:
    runs = json_of("estimate", "qwen3-8b", "--gpu-layers", "10", "--context", "1k")["estimates"]
    assert {run["engine"] for run in runs} == {"llama.cpp"}


def test_yarn_leaves_out_contexts_that_it_does_not_reach() -> None:
    found = json_of("estimate", "qwen3-8b", "--yarn", "2")
    assert {run["context"] for run in found["estimates"]} == {1024, 8192, 32768, 65536}


def test_more_sequences_than_any_engine_serves_are_refused() -> None:
    done = qwen3q("estimate", "qwen3-8b", "--parallel", "99999999999")
    assert done.returncode == 2
    assert "--parallel" in done.stderr


def test_a_context_beyond_reach_is_named_as_typed() -> None:
    done = qwen3q("estimate", "qwen3-8b", "--context", "99999m")
    assert "--context 99999m is beyond YaRN's limit for Qwen3-8B." in done.stderr


@pytest.mark.parametrize(
    ("options", "said", "changes"),
    [
        (("--vram", "100MB"), "100MB GPU with 8,192 tokens.", "a shorter --context or --kv q8_0."),
        (
            ("--vram", "1", "--parallel", "3", "--kv", "q8_0"),
            "1 GiB GPU with 8,192 tokens.",
            "a shorter --context or a smaller --parallel.",
        ),
        (
            ("--gpu", "2x 4090", "--min-speed", "100000"),
            "2x GeForce RTX 4090 with 8,192 tokens at 100000 tokens/s.",
            "a shorter --context, --kv q8_0 or a lower --min-speed.",
        ),
    ],
)
def test_nothing_fits_is_no_wrong_use_and_the_hint_is_about_what_was_given(
    options: tuple[str, ...], said: str, changes: str
) -> None:
    done = qwen3q("fit", *options)
    assert done.returncode == 1
    message, hint = done.stderr.strip().splitlines()
    assert message == f"qwen3q: No Qwen3 fits {said}"
    assert hint.endswith(f"Try {changes}")
    assert ("The smallest, Qwen3-0.6B in gguf:" in hint) == ("--vram" in options)


@pytest.mark.parametrize(
    ("name", "count", "part"),
    [
        ("2x RTX 4090", 2, "GeForce RTX 4090"),
        ("2xRTX 4090", 2, "GeForce RTX 4090"),
        ("4 X 3090", 4, "GeForce RTX 3090"),
        ("7900xtx", 1, "Radeon RX 7900 XTX"),
        ("2x7900xtx", 2, "Radeon RX 7900 XTX"),
    ],
)
def test_a_count_stands_before_a_name_with_or_without_a_blank(
    name: str, count: int, part: str
) -> None:
    assert [gpu.name for gpu in choose_gpus([name], None)[0]] == [part] * count


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("0x RTX 4090", "1 to 64 GPUs"),
        ("65xRTX 4090", "1 to 64 GPUs"),
        ("2x", "names no GPU"),
        ("2xRTX 4091", "No GPU is called 'RTX 4091'"),
        ("7901xtx", "No GPU is called '7901xtx'"),
    ],
)
def test_counts_that_name_no_gpus(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        choose_gpus([name], None)


def test_neither_torch_nor_llama_cpp_is_imported() -> None:
    code = (
        "import sys; from qwen3q.cli.app import main\n"
        "sys.argv = ['qwen3q', 'estimate', 'qwen3-8b']\n"
        "try: main()\nexcept SystemExit as done: assert not done.code\n"
        "heavy = {'torch', 'llama_cpp', 'numpy', 'rich', 'huggingface_hub', 'transformers'}\n"
        "sys.exit(len(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


NARROW = {
    "every quantization": ("estimate", "qwen3-235b-a22b"),
    "on GPUs": ("estimate", "qwen3-235b-a22b", "--gpu", "8x H100"),
    "one run": ("estimate", "qwen3-235b-a22b:Q4_K_M", "--gpu", "4x RTX PRO 6000 Blackwell"),
    "what fits": ("fit", "--gpu", "4x RTX PRO 6000 Blackwell", "--all"),
}


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("name", NARROW)
def test_tables_keep_to_the_width_of_a_terminal(name: str, width: int) -> None:
    """Nothing that the wide one tells is lost but units and the last digit of large figures."""
    wide, narrow = qwen3q(*NARROW[name]), qwen3q(*NARROW[name], width=width)
    assert wide.returncode == narrow.returncode == 0, narrow.stderr
    assert max(map(len, wide.stdout.splitlines())) > 100
    assert max(map(len, narrow.stdout.splitlines())) <= width
    words = set(re.findall(r"[^\s()]+", wide.stdout)) - {"engine", "command", "file", "MB"}
    told = set(re.findall(r"[^\s()]+", narrow.stdout))
    assert {word for word in words - told if not re.fullmatch(r"\d{3,}\.\d\d", word)} == set()


@pytest.mark.parametrize("width", [60, 80])
def test_a_folded_command_is_one_to_the_shell(width: int) -> None:
    options = ("fit", "--gpu", "2x H100", "--all")
    commands = [run["command"] for run in json_of(*options)["estimates"]]
    assert any(len(command) > 80 for command in commands)
    shown = qwen3q(*options, width=width).stdout.replace("\\\n", " ").splitlines()
    typed = [shlex.join(shlex.split(line)) for line in shown if line.startswith("  qwen3q ")]
    assert typed == commands


def test_a_wide_terminal_and_a_file_get_the_same() -> None:
    for arguments in NARROW.values():
        assert qwen3q(*arguments, width=200).stdout == qwen3q(*arguments).stdout
