"""lm-evaluation-harness over our backends: against naive transformers, and on a task of our own."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import lm_eval.tasks
import numpy as np
import pytest
import torch

from qwen3q.errors import MissingPackageError, OutOfMemoryError, SourceError, UsageError
from qwen3q.evaluate import loglikelihood as module
from qwen3q.evaluate.artefact import find_artefact
from qwen3q.evaluate.backends import BackendOptions, open_backend
from qwen3q.evaluate.lm_eval_adapter import BackendLM
from qwen3q.evaluate.lm_eval_run import HarnessOptions, load_tasks, run_tasks
from qwen3q.evaluate.lm_eval_tables import tasks_table
from qwen3q.evaluate.loglikelihood import Continuation, loglikelihoods
from qwen3q.evaluate.resume import Kept
from qwen3q.evaluate.tables import markdown
from qwen3q.evaluate.tokens import open_codec
from qwen3q.evaluate.torch_backend import TorchBackend

OPTIONS = BackendOptions(threads=1, device="cpu")


@pytest.fixture(scope="module")
def transformer(demo_folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32)


def naive(model, tokens: tuple[int, ...], start: int) -> tuple[float, bool]:
    """One row at a time, in double precision."""
    with torch.inference_mode():
        logits = model(torch.tensor([tokens])).logits[0].double()
    rows = logits.log_softmax(-1)[start - 1 : len(tokens) - 1]
    targets = torch.tensor(tokens[start:])
    score = rows[torch.arange(len(targets)), targets].sum()
    return float(score), bool((rows.argmax(-1) == targets).all())


@pytest.fixture(scope="module")
def asked(transformer) -> list[Continuation]:
    """Ragged rows, some of them sharing a beginning, some greedy."""
    rng = np.random.default_rng(8)
    out = []
    for length in (2, 3, 9, 40, 41, 64):
        tokens = rng.integers(0, 8000, length)
        for start in {1, length // 2, length - 1} - {0}:
            out.append(Continuation(tuple(tokens.tolist()), int(start)))
        out += [
            Continuation((*tokens[:-1].tolist(), int(other)), length - 1)
            for other in rng.integers(0, 8000, 3)
        ]
        with torch.inference_mode():
            likeliest = int(transformer(torch.tensor(tokens[None, :-1])).logits[0, -1].argmax())
        out.append(Continuation((*tokens[:-1].tolist(), likeliest), length - 1))
    return [out[i] for i in rng.permutation(len(out))]


@pytest.fixture(scope="module")
def expected(asked, transformer) -> list[tuple[float, bool]]:
    return [naive(transformer, one.tokens, one.start) for one in asked]


@pytest.mark.parametrize("kind", ["folder", "gguf"])
@pytest.mark.parametrize("call_tokens", [1 << 16, 200])
def test_likelihoods_of_ragged_rows(asked, expected, demo_ggufs, monkeypatch, kind, call_tokens):
    monkeypatch.setattr(module, "CALL_TOKENS", call_tokens)
    name = "demo" if kind == "folder" else str(demo_ggufs["F32"])
    with open_backend(find_artefact(name), OPTIONS, 128) as model:
        found = loglikelihoods(model, asked)
    # llama.cpp keeps keys and values in 16 bits
    atol = 2e-3 if kind == "folder" else 0.3
    for one, (score, greedy) in zip(found, expected, strict=True):
        assert one.log_probability == pytest.approx(score, abs=atol, rel=1e-4)
        assert one.greedy == greedy
    assert any(one.greedy for one in found)


def test_one_call_for_rows_of_like_length(asked):
    class Counting:
        calls = 0

        def logits(self, chunks, first):
            self.calls += 1
            width = chunks.shape[1] - 1 - first
            yield 0, np.zeros((len(chunks) * width, 8192), np.float32)

    model = Counting()
    found = loglikelihoods(model, asked)
    assert model.calls == 5
    for one, continuation in zip(found, asked, strict=True):
        scored = len(continuation.tokens) - continuation.start
        assert one.log_probability == pytest.approx(-scored * np.log(8192))


def test_harness_requests_are_hflms(demo_folder, transformer):
    """The harness's own transformers model, on the same texts."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_folder)
    theirs = HFLM(pretrained=transformer, tokenizer=tokenizer, batch_size=1, max_length=64)
    pairs = [("Once upon a time", " there was"), ("The boy ", "hid"), ("", "The lamp")]
    pairs.append(("word " * 80, "lamp"))
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    rolling = [Instance("loglikelihood_rolling", {}, (t,), 0) for t in ("word " * 90, "A boy.")]
    until = {"until": [".", "\n\n"], "max_gen_toks": 36}
    answers = [Instance("generate_until", {}, (t, until), 0) for t in ("Once upon a time", "The")]
    artefact = find_artefact("demo")
    with open_backend(artefact, OPTIONS, 128) as model:
        ours = BackendLM(model, open_codec(artefact), 64)
        for mine, other in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True):
            assert mine[0] == pytest.approx(other[0], abs=2e-3, rel=1e-4)
            assert mine[1] == other[1]
        assert ours.loglikelihood_rolling(rolling) == pytest.approx(
            theirs.loglikelihood_rolling(rolling), abs=1e-2
        )
        said = ours.generate_until(answers)
        assert said == theirs.generate_until(answers)
        assert all("." not in text for text in said)


def test_questions_keep_to_their_own_limits_and_numbers():
    """Several answers to one question differ; one question's limit is not another's."""
    from lm_eval.api.instance import Instance

    artefact = find_artefact("demo")
    drawn = {"until": [], "max_gen_toks": 6, "do_sample": True, "temperature": 1.0}
    longer = drawn | {"max_gen_toks": 20}
    asked = [Instance("generate_until", {}, ("Once upon", drawn), i) for i in range(4)]
    asked += [Instance("generate_until", {}, ("The boy", longer), 4)]
    asked += [Instance("generate_until", {}, ("", drawn), 5)]
    with open_backend(artefact, OPTIONS, 128) as model:
        codec = open_codec(artefact)
        said = BackendLM(model, codec, 64).generate_until(asked)
        counts = [len(codec.encode(text, parse_special=True)) for text in said]
        assert len(set(said[:4])) == 4
        assert all(count <= 6 for count in [*counts[:4], counts[5]])
        assert counts[4] > 6
        with pytest.raises(
            UsageError, match="answers of 64 tokens, and the model's context holds 64"
        ):
            BackendLM(model, codec, 64).generate_until(
                [Instance("generate_until", {}, ("x", {"until": [], "max_gen_toks": 64}), 0)]
            )


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> list[str]:
    """Two tasks over local files: a choice between words, and a sum to be generated."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(9)
    choices, sums = [], []
    for number in range(12):
        a, b = map(int, rng.integers(10, 400, 2))
        choices.append({"question": f"Which is larger, {a} or {b}?", "right": int(a < b)})
        choices[-1]["options"] = [str(a), str(b)]
        sums.append({"question": f"What is {a} + {b}?", "answer": str(a + b), "id": number})
    for name, rows in (("larger", choices), ("sums", sums)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    common = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
metadata: {{version: 3}}
"""
    (folder / "larger.yaml").write_text(
        "task: local_larger\noutput_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{options}}"\ndoc_to_target: right\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
        + common.format(file=folder / "larger.jsonl")
    )
    (folder / "sums.yaml").write_text(
        "task: local_sums\noutput_type: generate_until\n"
        'doc_to_text: "{{question}}"\ndoc_to_target: answer\n'
        'generation_kwargs: {until: ["\\n"], max_gen_toks: 12}\n'
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
        + common.format(file=folder / "sums.jsonl")
    )
    return [str(folder / "larger.yaml"), str(folder / "sums.yaml")]


def test_tasks_end_to_end(tasks, demo_ggufs, transformer):
    demo = find_artefact("demo")
    files = [find_artefact(str(demo_ggufs[kind])) for kind in ("F32", "Q2_K")]
    options = HarnessOptions(tuple(tasks), limit=6)
    rows = run_tasks(demo, files, options, load_tasks(options), OPTIONS)
    told = {(row["format"], row["task"]): row for row in rows}
    assert len(told) == len(rows) == 6
    reference = told["bfloat16", "local_larger"]
    assert reference["value"] == pytest.approx(naive_accuracy(tasks[0], demo, transformer))
    share = reference["value"]
    assert reference["stderr"] == pytest.approx((share * (1 - share) / 5) ** 0.5)
    assert (reference["questions"], reference["fewshot"], reference["version"]) == (6, 0, 3)
    assert "change" not in reference
    same = told["gguf:F32", "local_larger"]
    assert (same["value"], same["change"], same["change_stderr"]) == (share, 0, 0)
    worse = told["gguf:Q2_K", "local_larger"]
    assert worse["change"] == pytest.approx(worse["value"] - share)
    assert told["gguf:F32", "local_sums"]["metric"] == "exact_match"
    assert json.loads(json.dumps(rows)) == rows
    text = markdown(tasks_table({"tasks": rows}))
    assert text.count("| local_larger | acc |") == 3


def naive_accuracy(task: str, demo, transformer) -> float:
    codec = open_codec(demo)
    lines = Path(task).with_suffix(".jsonl").read_text().splitlines()[:6]
    right = 0
    for question in map(json.loads, lines):
        scores = []
        for option in question["options"]:
            context = codec.encode(question["question"], parse_special=True)
            whole = codec.encode(f"{question['question']} {option}", parse_special=True)
            scores.append(naive(transformer, tuple(whole.tolist()), len(context))[0])
        right += int(np.argmax(scores)) == question["right"]
    return right / len(lines)


def test_a_vocabulary_knows_its_models_context(demo_ggufs):
    for name in ("demo", str(demo_ggufs["Q8_0"])):
        codec = open_codec(find_artefact(name))
        assert codec.trained_context == 2048
        assert codec.decode([codec.eos]) == ""
        assert codec.spell([codec.eos]) == "<|im_end|>"


def test_an_unknown_task_no_package_or_no_data(tasks, tmp_path, monkeypatch):
    # the harness's own tasks take seconds to read
    few = partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **_: few())
    with pytest.raises(UsageError, match="has no task 'gsm9k'"):
        load_tasks(HarnessOptions(("gsm9k",)))
    lost = tmp_path / "lost.yaml"
    lost.write_text(Path(tasks[0]).read_text().replace("larger.jsonl", "nowhere.jsonl"))
    with pytest.raises(SourceError, match="can't be had"):
        load_tasks(HarnessOptions((str(lost),)))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(MissingPackageError, match="lm-evaluation-harness"):
        load_tasks(HarnessOptions(tuple(tasks)))


@pytest.mark.parametrize(
    "full", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")]
)
def test_full_memory_is_not_blamed_on_the_task(tasks, monkeypatch, full):
    def generate(*_):
        raise full

    monkeypatch.setattr(TorchBackend, "generate", generate)
    options = HarnessOptions((tasks[1],), limit=2)
    with pytest.raises(OutOfMemoryError, match=r"memory of .* is full"):
        run_tasks(find_artefact("demo"), [], options, load_tasks(options), OPTIONS)


def test_an_interrupted_task_is_resumed_answer_by_answer(tasks, tmp_path, monkeypatch):
    demo = find_artefact("demo")
    options = HarnessOptions((tasks[1],), limit=6)
    manager = load_tasks(options)
    whole = run_tasks(demo, [], options, manager, OPTIONS)
    generate = TorchBackend.generate
    asked: list[int] = []

    def stopped(self, prompts, max_tokens, stop_tokens, finished):
        asked.append(len(prompts))

        def told(number, tokens):
            finished(number, tokens)
            if len(asked) == 1:
                raise KeyboardInterrupt

        return generate(self, prompts, max_tokens, stop_tokens, told)

    monkeypatch.setattr(TorchBackend, "generate", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_tasks(demo, [], options, manager, OPTIONS, kept=Kept(tmp_path))
    kept = Kept(tmp_path, resume=True)
    other_threads = replace(OPTIONS, threads=2)
    assert run_tasks(demo, [], options, manager, other_threads, kept=kept) == whole
    assert asked == [6, 5]
    assert kept.notes == ["Qwen3 demo: one answer of tasks taken from an earlier call."]
    assert not list(tmp_path.glob("*.jsonl"))
