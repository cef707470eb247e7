"""``qwen3q eval URL`` and ``qwen3q eval endpoint URL`` as a user runs them."""

from __future__ import annotations

import json

import pytest
from endpoint_server import DONE, event, serve, served_with, usage_event

from qwen3q.evaluate.artefact import find_artefact
from qwen3q.evaluate.tokens import open_codec

SHORT = ("--reference", "demo", "--context", "64", "--max-chunks", "2", "--threads", "1")


@pytest.fixture(scope="module")
def served():
    codec = open_codec(find_artefact("demo"))

    def stream(write) -> None:
        write(event("one") + event(" two", "length") + usage_event(16, 2) + DONE)

    with serve(served_with(codec, models=("org/\x1b[31mRed [bold]",), stream=stream)) as server:
        yield server


def test_an_endpoint_beside_files(cli, served, tmp_path):
    out = tmp_path / "out"
    key = "a-secret-key"
    done = cli("eval", served.url, "demo", *SHORT, "--out", out, QWEN3Q_API_KEY=key)
    assert done.returncode == 0, done.stderr
    assert "no KL divergence" in done.stderr
    assert "\x1b" not in done.stdout
    assert "Red [bold]" in done.stdout
    assert served.keys[-1] == f"Bearer {key}"
    for path in out.iterdir():
        assert key.encode() not in path.read_bytes()
    report = json.loads((out / "report.json").read_text())
    rows = {row["format"]: row for row in report["results"]}
    assert rows["endpoint:vllm"]["perplexity"] > 1
    assert rows["endpoint:vllm"]["kl_mean"] is None
    assert rows["bfloat16"]["kl_mean"] == pytest.approx(0, abs=1e-5)
    again = cli("eval", served.url, "demo", *SHORT, "--out", out, "--resume")
    assert again.returncode == 0, again.stderr
    assert "Qwen3 demo: fidelity taken from an earlier call." in again.stderr
    resumed = json.loads((out / "report.json").read_text())["results"]
    assert resumed[1] == report["results"][1]
    merged = cli("report", out / "report.json", out / "report.json", "--out", tmp_path / "merged")
    assert merged.returncode == 0, merged.stderr


def test_streaming_clients(cli, served, tmp_path):
    numbers = ("--concurrency", "2", "--prompt", "16", "--generate", "2", "--requests", "3")
    out = tmp_path / "streaming.json"
    arguments = (served.url, "--tokenizer", "demo", *numbers, "--out", out)
    done = cli("eval", "endpoint", *arguments)
    assert done.returncode == 0, done.stderr
    assert "16 + 2 tokens" in done.stdout
    row = json.loads(out.read_text())["streaming"][0]
    assert (row["concurrency"], row["requests"], row["generated_tokens"]) == (2, 3, 6)
    printed = cli("eval", "endpoint", *arguments, "--json")
    assert json.loads(printed.stdout)["streaming"][0].keys() == row.keys()


@pytest.mark.parametrize(("failing", "code"), [(1, 0), (2, 0), (3, 1), (4, 1)])
def test_a_call_of_which_most_requests_failed_fails(cli, tmp_path, failing, code):
    """Four requests after one to find the way and one to warm up."""
    codec = open_codec(find_artefact("demo"))
    number = iter(range(99))

    def stream(write) -> None:
        if 2 <= next(number) < 2 + failing:
            write(b'data: {"error": {"message": "out of memory"}}\n\n')
        write(event("one") + event(" two", "length") + usage_event(16, 2) + DONE)

    out = tmp_path / "streaming.json"
    numbers = ("--concurrency", "1", "--prompt", "16", "--generate", "2", "--requests", "4")
    with serve(served_with(codec, stream=stream)) as server:
        done = cli(
            "eval", "endpoint", server.url, "--tokenizer", "demo", *numbers, "--out", out, "--json"
        )
    assert done.returncode == code, done.stderr
    assert json.loads(out.read_text())["streaming"][0]["failed"] == failing
    assert json.loads(done.stdout)["streaming"][0]["failed"] == failing
    said = f"{failing} of 4 requests failed with 1 client"
    assert (said in done.stderr) == bool(code)
    assert ("out of memory" in done.stderr) == bool(code)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("http://127.0.0.1:9", *SHORT), 1, "connection refused"),
        (("demo", "--reference", "http://127.0.0.1:9"), 2, "is an endpoint"),
        (("endpoint", "http://127.0.0.1:9"), 1, "connection refused"),
        (("endpoint", "127.0.0.1:9"), 2, "no endpoint"),
        (("demo", *SHORT, "--resume"), 2, "--out"),
    ],
)
def test_mistakes_are_explained(cli, arguments, code, says):
    done = cli("eval", *arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_model_needs_its_tokenizer_named(cli, served):
    done = cli("eval", "endpoint", served.url)
    assert done.returncode == 2
    assert "--tokenizer" in done.stderr
    assert "\x1b" not in done.stderr
