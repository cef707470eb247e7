"""``qwen3q chat`` for one answer: pipes, JSON, MODEL:TYPE, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SUM = "What is 413 + 389?"
GREEDY = ["--temperature", 0, "--threads", 1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def test_one_answer_as_json(cli, demo_gguf):
    run = cli("chat", demo_gguf, "-p", SUM, *GREEDY, "--json")
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert answer["answer"] == "413 + 389 = 802."
    assert "carry" in answer["thinking"]
    assert answer["stop_reason"] == "end"
    assert answer["generated_tokens"] > answer["thinking_tokens"] > 0
    assert answer["prompt_tokens"] == 22
    assert answer["prefill_tokens_per_second"] > 0
    assert answer["decode_tokens_per_second"] > 0
    assert answer["sampling"]["temperature"] == 0
    assert "Qwen advises against greedy" in run.stderr


def test_the_demo_by_type_is_quantized_once(cli, cache):
    for _ in range(2):
        run = cli("chat", "demo:q4_k_m", "-p", SUM, *GREEDY, QWEN3Q_CACHE=cache)
        assert run.returncode == 0, run.stderr
        assert run.stdout == "413 + 389 = 802.\n"
    files = [name for _, _, names in os.walk(cache) for name in names]
    assert files == ["Qwen3-demo-Q4_K_M.gguf"]


def test_a_pipe_is_the_question(demo_gguf, tmp_path):
    command = [sys.executable, "-m", "qwen3q", "chat", demo_gguf, *map(str, GREEDY)]
    piped = subprocess.run(command, input=SUM + "\n", capture_output=True, text=True, check=True)
    assert piped.stdout == "413 + 389 = 802.\n"
    question = tmp_path / "question"
    question.write_text("413 + 389?\n")
    both = subprocess.run(
        [*command, "-p", "What is", "-f", question, "--json"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    one = subprocess.run(
        [*command, "-p", "What is\n\n413 + 389?", "--json"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(both.stdout)["answer"] == json.loads(one.stdout)["answer"]
    assert json.loads(both.stdout)["prompt_tokens"] == json.loads(one.stdout)["prompt_tokens"]


def test_modes_have_their_own_sampling(cli, demo_gguf):
    run = cli("chat", demo_gguf, "-p", "Count from 5 to 9.", "--no-think", "--seed", 3, "--json",
              "--threads", 1)  # fmt: skip
    answer = json.loads(run.stdout)
    assert answer["thinking"] == ""
    assert answer["sampling"] == {
        "thinking": False, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.0,
        "presence_penalty": 0.0, "seed": 3,
    }  # fmt: skip


def test_an_answer_cut_short_says_so(cli, demo_gguf):
    run = cli("chat", demo_gguf, "-p", SUM, *GREEDY, "--no-think", "--max-tokens", 5)
    assert run.returncode == 0
    assert run.stdout.startswith("413")
    assert run.stderr == "The answer was cut at --max-tokens 5.\n"


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_no_answer_is_a_failure(cli, demo_gguf, json_flag):
    run = cli("chat", demo_gguf, "-p", SUM, *GREEDY, "--max-tokens", 5, *json_flag)
    assert run.returncode == 1
    assert "The answer was cut at --max-tokens 5 before the first word of an answer." in run.stderr
    assert "Raise --max-tokens, or add --no-think." in run.stderr
    assert bool(run.stdout) == bool(json_flag)
    run = cli("chat", demo_gguf, "-p", "again " * 242, *GREEDY, "--context", 256, *json_flag)
    assert run.returncode == 1
    assert "where the context of 256 tokens ends before the first word" in run.stderr
    assert "Raise --context" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.gguf", "-p", "x"], 1, "no GGUF file at none.gguf"),
        (["{gguf}", "-p", " "], 2, "The question is empty."),
        (["{gguf}", "-p", "x " * 300, "--context", "256"], 2, "context holds 256"),
        (["{gguf}", "-p", "x", "--temperature", "-1"], 2, "'--temperature': -1.0 is not in the"),
        (["{gguf}", "-p", "x", "--top-p", "1.5"], 2, "'--top-p': 1.5 is not in the range 0<=x<=1"),
        (["{gguf}", "-p", "x", "--seed", "-1"], 2, "'--seed': -1 is not in the range"),
        (["{gguf}", "-p", "x", "--context", "1"], 2, "'--context': 1 is not in the range 256<=x"),
        (["{gguf}", "-p", "x", "--context", "99999999"], 2, "'--context': 99999999 is not in"),
        (["{gguf}", "-p", "x", "--yarn", "9"], 2, "--yarn 9 is outside what Qwen3"),
        (["nope", "-p", "x"], 1, "There is no model 'nope'."),
        (["{gguf}", "-p", "x", "--cache-type", "q3"], 2, "'q3' is no type for the KV cache"),
        (["{gguf}", "-f", "none.txt"], 2, "Can't read none.txt"),
    ],
)
def test_bad_input_is_one_sentence(cli, demo_gguf, arguments, code, message):
    run = cli("chat", *(argument.format(gguf=demo_gguf) for argument in arguments))
    assert run.returncode == code
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
