"""Endpoints: figures and answers of a server whose distribution is known, and of real ones."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from math import exp, log

import numpy as np
import pytest
from continuing import continued
from endpoint_server import Served, serve, served_with

from qwen3q.data.texts import evaluation_text
from qwen3q.errors import ModelError, UsageError
from qwen3q.evaluate.artefact import endpoint_artefact, find_artefact
from qwen3q.evaluate.backends import BackendOptions, open_backend
from qwen3q.evaluate.endpoint import EndpointOptions, find_endpoint
from qwen3q.evaluate.endpoint_backend import EndpointBackend
from qwen3q.evaluate.endpoint_http import EndpointError
from qwen3q.evaluate.endpoint_scores import SCORERS
from qwen3q.evaluate.gate_run import GateOptions, check_gate
from qwen3q.evaluate.lm_eval_run import HarnessOptions, load_tasks
from qwen3q.evaluate.loglikelihood import Continuation, loglikelihoods
from qwen3q.evaluate.measure import TextOptions, measure_fidelity
from qwen3q.evaluate.report import merge_reports, read_report, run_report, write_report
from qwen3q.evaluate.report_html import report_html
from qwen3q.evaluate.report_markdown import report_markdown
from qwen3q.evaluate.sampling import GREEDY, Prompt
from qwen3q.evaluate.tasks import Level

TEXT = TextOptions(context=64, max_chunks=6)
OPTIONS = BackendOptions(threads=1, device="cpu")


@pytest.fixture(scope="module")
def followers(codec) -> dict[int, int]:
    """The most common follower of each token in the text that is measured."""
    tokens = codec.encode(evaluation_text("english"), parse_special=False).tolist()
    pairs = Counter(pairwise(tokens))
    return {before: after for (before, after), _ in reversed(pairs.most_common())}


@pytest.fixture
def served(codec, followers):
    def make(dialect: str, **changes) -> Served:
        return served_with(
            codec, dialect, successor=lambda token: followers.get(token, 262), **changes
        )

    return make


@pytest.mark.parametrize("dialect", ["vllm", "echo", "sglang"])
def test_perplexity_is_the_known_distributions(dialect, served, demo, codec, followers, tmp_path):
    tokens = codec.encode(evaluation_text("english"), parse_special=False)[: 6 * 64]
    chunks = tokens.reshape(6, 64)
    before, after = chunks[:, 32:-1].ravel(), chunks[:, 33:].ravel()
    top = np.array([followers.get(int(token), 262) for token in before])
    hits = top == after
    nll = -np.where(hits, log(0.5), log(0.5 / 8191))
    assert 0.1 < hits.mean() < 0.9
    with serve(served(dialect)) as server:
        artefact = endpoint_artefact(server.url, demo)
        run = measure_fidelity(
            demo, [artefact, demo], evaluation_text("english"), TEXT, OPTIONS, out=tmp_path
        )
    asked, reference = run.results
    fidelity = asked.fidelity
    assert fidelity.tokens == len(nll)
    assert fidelity.perplexity.value == pytest.approx(exp(nll.mean()), rel=1e-12)
    error = nll.std(ddof=1) / np.sqrt(len(nll))
    assert fidelity.perplexity.stderr == pytest.approx(exp(nll.mean()) * error, rel=1e-9)
    ratio = log(fidelity.perplexity.value / reference.fidelity.perplexity.value)
    assert fidelity.log_perplexity_ratio.value == pytest.approx(ratio, abs=1e-9)
    assert fidelity.kl_mean is fidelity.kl_p99 is fidelity.kl_max is None
    assert "KL" in asked.missing["kl"]
    if dialect == "echo":
        assert fidelity.top1 is None
        assert dialect in asked.missing["top1"]
    else:
        with open_backend(demo, OPTIONS, 64) as backend:
            best = np.concatenate([v.argmax(1) for _, v in backend.logits(chunks, 32)])
        assert fidelity.top1.value == (best == top).mean()
    assert artefact.file_bytes is artefact.bits_per_weight is None


def test_a_row_without_figures_goes_through_every_report(served, demo, tmp_path):
    with serve(served("llamacpp")) as server:
        artefact = endpoint_artefact(server.url, demo)
        run = measure_fidelity(demo, [artefact, demo], evaluation_text("english"), TEXT, OPTIONS)
    assert run.results[0].fidelity is None
    report = run_report(run, "the text", ["qwen3q"])
    row = report["results"][0]
    figures = ("perplexity", "perplexity_stderr", "kl_mean", "kl_p99", "kl_max", "top1")
    assert {row[name] for name in (*figures, "file_bytes", "bits_per_weight")} == {None}
    written = write_report(report, tmp_path)
    assert read_report(written[0]) == report
    merged = merge_reports([report, report])
    for text in (report_html(merged), report_markdown(merged)):
        assert artefact.name in text
        assert "no KL divergence" in text
        assert "no perplexity" in text
        assert "None" not in text


def test_a_task_that_a_server_cannot_score_is_told_before_anything_is_asked(served, demo, tmp_path):
    pytest.importorskip("lm_eval")
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"q": "1 + 1 =", "options": ["2", "3"], "right": 0}) + "\n")
    task = tmp_path / "sums.yaml"
    task.write_text(
        "task: local_choice\ndataset_path: json\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {questions}}}}}\n"
        "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{options}}'\n"
        "doc_to_target: right\nmetric_list: [{metric: acc}]\n"
    )
    options = HarnessOptions((str(task),))
    with serve(served("llamacpp")) as server:
        artefact = endpoint_artefact(server.url, demo)
        with pytest.raises(EndpointError, match="which local_choice needs") as told:
            load_tasks(options, [demo, artefact])
    assert artefact.name in told.value.message
    with serve(served("vllm")) as server:
        load_tasks(options, [demo, endpoint_artefact(server.url, demo)])


@pytest.mark.parametrize(
    ("dialect", "way", "checked"),
    [
        ("vllm", "tokens", True),
        ("echo", "prompt tokens", False),
        ("sglang", "SGLang", True),
        ("llamacpp", "llama-server", True),
        ("ollama", "Ollama", True),
        ("text", "prompt text", False),
    ],
)
def test_each_server_continues_our_own_prompt(dialect, way, checked, served, demo, codec):
    prompt = codec.encode("<|im_start|>user\nOnce upon a time", parse_special=True).tolist()
    with serve(served(dialect)) as server:
        expected = server.continuation(prompt, 12)
        backend = EndpointBackend(endpoint_artefact(server.url, demo), 64)
        assert backend.endpoint.generation.name == way
        assert backend.endpoint.tokenizer_checked == checked
        probes = len(server.requests)
        made = continued(backend, prompt, 12)
        _, body = server.requests[probes]
        stopped = continued(backend, prompt, 12, frozenset({expected[5]}))
    assert len(made) == 12
    if way in ("tokens", "SGLang", "llama-server"):
        assert made == expected
    else:
        # text that is encoded again may fall into other tokens
        assert codec.spell(expected).startswith(codec.spell(made))
    assert stopped == made[: made.index(expected[5])]
    assert body.get("prompt", body.get("input_ids")) in (prompt, codec.spell(prompt))


def test_a_servers_text_is_asked_for_until_it_has_the_tokens(served, demo, codec):
    whole = codec.encode(" house", parse_special=False).tolist()
    halves = [codec.encode(part, parse_special=False).tolist() for part in (" h", "ouse")]
    assert len(whole) == 1
    ring = [token for half in halves for token in half]
    after = dict(zip(ring, [*ring[1:], ring[0]], strict=True)) | {whole[0]: ring[0]}
    with serve(served("text")) as server:
        backend = EndpointBackend(endpoint_artefact(server.url, demo), 64)
        server.successor = lambda token: after.get(token, ring[0])
        count = len(server.requests)
        made = continued(backend, [700, 701], 9)
        assert len(server.requests) - count > 1
    assert len(made) == 9
    assert made[0] == whole[0]


def test_an_answer_that_ended_by_itself_is_shorter_than_the_limit(served, demo, codec):
    with serve(served("vllm")) as server:
        artefact = endpoint_artefact(server.url, demo)
        stop = server.continuation([700], 4)[-1]
        made = continued(EndpointBackend(artefact, 64), [700], 4, frozenset({stop}))
    assert len(made) < 4


def test_another_tokenizer_is_refused(served, demo):
    with serve(served("vllm")) as server:
        server.encode = lambda text: list(text.encode())
        with pytest.raises(ModelError, match="another tokenizer"):
            endpoint_artefact(server.url, demo)


def test_several_models_need_a_name(served, demo):
    with serve(served("vllm", models=("org/one", "org/two"))) as server:
        with pytest.raises(UsageError, match="2 models") as caught:
            find_endpoint(server.url)
        assert "org/one" in caught.value.hint
        with pytest.raises(UsageError, match="'three'"):
            find_endpoint(server.url, EndpointOptions("three"))
        artefact = endpoint_artefact(server.url, demo, EndpointOptions("org/two"))
        assert artefact.name.startswith("two at 127.0.0.1:")
        assert artefact.format == "endpoint:vllm"
        assert {body["model"] for _, body in server.requests} == {"org/two"}


def test_a_context_that_is_too_short_is_refused_before_anything_is_asked(served, demo):
    with serve(served("vllm", context=64)) as server:
        artefact = endpoint_artefact(server.url, demo)
        with pytest.raises(EndpointError, match="64 tokens, but 65"):
            measure_fidelity(demo, [artefact], evaluation_text("english"), TEXT, OPTIONS)


@pytest.mark.parametrize(("dialect", "takes"), [("sglang", 57), ("vllm", 64)])
def test_a_server_takes_what_it_says_less_what_it_keeps(dialect, takes, served, demo):
    with serve(served(dialect, context=64)) as server:
        assert find_endpoint(server.url).context == takes


def test_other_tokens_than_ours_are_no_scores():
    told = [[None, 700, None], [-1.0, 0, None], [-2.0, 701, None]]
    likeliest = [None, [[-1.0, 5, None]], [[-2.0, 6, None]]]
    reply = {"meta_info": {"input_token_logprobs": told, "input_top_logprobs": likeliest}}
    (read,) = [scorer.read for scorer in SCORERS if scorer.name == "return_logprob"]
    assert read(reply, [700, 8191, 701]).log_probabilities.tolist() == [-1.0, -2.0]
    for tokens in ([700, 650, 701], [700, 8191, 702], [700, 8191, 8190]):
        with pytest.raises(ValueError):  # noqa: PT011 (it says nothing; callers do)
            read(reply, tokens)


def test_a_text_is_asked_for_in_pieces_until_it_ends(served, demo):
    with serve(served("vllm")) as server:
        backend = EndpointBackend(endpoint_artefact(server.url, demo), 512)
        expected = server.continuation([700], 200)
        count = len(server.requests)
        prompt = Prompt([700], GREEDY, lambda made: len(made) >= 100)
        (made,) = backend.generate([prompt], 200, frozenset())
        assert [body["max_tokens"] for _, body in server.requests[count:]] == [64, 64]
        assert made == expected[:128]
        (whole,) = backend.generate([Prompt([700])], 200, frozenset())
        assert whole == expected


def test_servers_that_batch_are_asked_for_several_at_a_time(served, demo):
    prompts = [Prompt([700 + number]) for number in range(40)]
    told: dict[int, list[int]] = {}
    with serve(served("vllm")) as server:
        backend = EndpointBackend(endpoint_artefact(server.url, demo), 64)
        made = backend.generate(prompts, 5, frozenset(), told.__setitem__)
        assert made == [server.continuation(prompt.tokens, 5) for prompt in prompts]
    assert told == dict(enumerate(made))


def test_a_context_too_short_for_the_gate_is_refused_before_anything_is_measured(served, demo):
    with serve(served("vllm", context=300)) as server:
        artefact = endpoint_artefact(server.url, demo)
        check_gate(demo, [artefact], GateOptions(Level.BASIC, each=2, max_tokens=100))
        with pytest.raises(EndpointError, match="takes 300 tokens, but"):
            check_gate(demo, [artefact], GateOptions(Level.BASIC, each=2, max_tokens=290))


def test_answers_that_make_no_sense_are_refused(served, demo):
    with serve(served("vllm")) as server:
        backend = EndpointBackend(endpoint_artefact(server.url, demo), 64)
        chunks = np.arange(60, dtype=np.int32).reshape(2, 30)
        for value in (0.5, -9999.0, None, "x"):
            server.log_probability = lambda before, token, value=value: value
            with pytest.raises(EndpointError, match="30 tokens"):
                list(backend.scores(chunks, 10))


def test_continuations_are_as_likely_as_the_distribution_says(served, demo):
    with serve(served("sglang")) as server:
        backend = EndpointBackend(endpoint_artefact(server.url, demo), 64)
        likely = server.continuation([700], 3)
        asked = [
            Continuation((700, *likely), 1),
            Continuation((700, *likely[:2], 4000), 2),
            Continuation((4000, 700, likely[0]), 2),
        ]
        found = loglikelihoods(backend, asked)
    assert [one.greedy for one in found] == [True, False, True]
    expected = [3 * log(0.5), log(0.5) + log(0.5 / 8191), log(0.5)]
    assert [one.log_probability for one in found] == pytest.approx(expected)


def test_logits_are_refused(served, demo):
    with serve(served("vllm")) as server:
        artefact = endpoint_artefact(server.url, demo)
        with open_backend(artefact, OPTIONS, 64) as backend:
            with pytest.raises(EndpointError, match="no logits"):
                backend.logits(np.zeros((1, 8), np.int32), 4)
            assert backend.vocab_size == 8192


@pytest.mark.peer
def test_llama_server_continues_as_its_file_does(llama_server, demo, demo_ggufs, codec):
    artefact = endpoint_artefact(llama_server, demo)
    assert artefact.format == "endpoint:llama.cpp"
    assert artefact.endpoint.scorer is None
    assert artefact.endpoint.tokenizer_checked
    text = "<|im_start|>user\nWhat is 12 + 34?<|im_end|>\n<|im_start|>assistant\n"
    prompt = codec.encode(text, parse_special=True).tolist()
    with open_backend(find_artefact(str(demo_ggufs["F32"])), OPTIONS, 300) as backend:
        expected = continued(backend, prompt, 200, codec.stop_tokens)
    with open_backend(artefact, OPTIONS, 300) as backend:
        assert continued(backend, prompt, 200, codec.stop_tokens) == expected
    assert 10 < len(expected) < 200


@pytest.mark.peer
def test_vllm_scores_as_torch_does(demo):
    """With QWEN3Q_VLLM_URL naming a vLLM that serves the demo in float32."""
    url = os.environ.get("QWEN3Q_VLLM_URL")
    if not url:
        pytest.skip("QWEN3Q_VLLM_URL names no vLLM server of the demo")
    artefact = endpoint_artefact(url, demo)
    run = measure_fidelity(demo, [artefact], evaluation_text("english"), TEXT, OPTIONS)
    fidelity = run.results[0].fidelity
    assert fidelity.perplexity.value == pytest.approx(run.reference.perplexity, rel=0.005)
    assert fidelity.top1.value > 0.99
    echo = replace(artefact.endpoint, scorer=next(s for s in SCORERS if s.name == "echo"))
    told = EndpointBackend(replace(artefact, endpoint=echo), 65)
    assert [row.top for row in told.scores(np.arange(64, dtype=np.int32)[None], 32)] == [None]


def test_json_report_of_an_endpoint_has_no_key_in_it(served, demo, monkeypatch, tmp_path):
    monkeypatch.setenv("QWEN3Q_API_KEY", "very-secret")
    with serve(served("vllm")) as server:
        artefact = endpoint_artefact(server.url, demo)
        run = measure_fidelity(demo, [artefact], evaluation_text("english"), TEXT, OPTIONS)
    assert "very-secret" not in json.dumps(run_report(run, "t", ["qwen3q"]))
