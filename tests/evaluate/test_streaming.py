"""Streaming clients: a server in step with the client's clock, failures, and llama-server."""

from __future__ import annotations

import json
import threading
from itertools import pairwise

import numpy as np
import pytest
from endpoint_server import DONE, Served, event, reply, serve, served_with, usage_event
from hub_server import HubServer, Repo, as_nobody, folder_files

from qwen3q.errors import UsageError
from qwen3q.evaluate.artefact import find_artefact
from qwen3q.evaluate.endpoint import find_endpoint
from qwen3q.evaluate.endpoint_http import EndpointError
from qwen3q.evaluate.named_tokenizer import open_tokenizer
from qwen3q.evaluate.report import merge_reports
from qwen3q.evaluate.report_html import report_html
from qwen3q.evaluate.report_markdown import report_markdown
from qwen3q.evaluate.streaming import (
    Level,
    Stream,
    StreamingOptions,
    level_row,
    measure_streaming,
    stream_endpoint,
)
from qwen3q.evaluate.streaming_prompts import make_prompts
from qwen3q.evaluate.streaming_tables import STREAMING_NOTE, streaming_table
from qwen3q.evaluate.tokens import open_codec
from qwen3q.models import hub
from qwen3q.models.hub import HubSite


def server(codec, stream, **changes) -> Served:
    return served_with(codec, stream=stream, **changes)


@pytest.mark.parametrize("length", [1, 7, 64, 500])
def test_prompts_have_exactly_their_tokens_and_begin_apart(codec, demo_ggufs, length):
    other = open_codec(find_artefact(str(demo_ggufs["Q8_0"])))
    prompts = make_prompts(codec, length, 20, seed=3)
    for prompt in prompts:
        assert len(prompt.tokens) == length
        for tokenizer in (codec, other):
            assert tuple(tokenizer.encode(prompt.text, parse_special=True)) == prompt.tokens
    if length >= 7:
        assert len({prompt.tokens[:7] for prompt in prompts}) == 20
    assert make_prompts(codec, length, 20, seed=3) == prompts
    assert length == 1 or make_prompts(codec, length, 20, seed=4) != prompts


class Lockstep:
    """A server's virtual time: each event waits until the client has read the clock for the last.

    A client that buffered events, or read its clock after more than one, would wait for ever.
    """

    def __init__(self, delays: list[float]) -> None:
        self._delays = delays
        self._now = 100.0
        self._reads = 0
        self._changed = threading.Condition()

    def clock(self) -> float:
        with self._changed:
            self._reads += 1
            self._changed.notify_all()
            return self._now

    def stream(self, write) -> None:
        with self._changed:
            seen = self._reads
        for delay in self._delays:
            with self._changed:
                self._now += delay
            write(event("x"))
            seen += 2  # the event's line and the empty one after it
            with self._changed:
                assert self._changed.wait_for(lambda: self._reads >= seen, 20)  # noqa: B023
        write(event("", "length") + usage_event(30, len(self._delays)) + DONE)


def test_times_are_those_at_which_the_text_came(codec):
    delays = [0.25, 0.01, 0.02, 0.02, 0.5]
    step = Lockstep(delays)
    options = StreamingOptions(concurrency=(1,), prompt=16, generate=5, requests=3)
    with serve(server(codec, step.stream)) as served:
        (level,) = measure_streaming(find_endpoint(served.url), codec, options, clock=step.clock)
        asked = [body for _, body in served.requests]
    for stream in level.streams:
        assert not stream.failure
        arrived = np.cumsum(delays) + stream.sent
        np.testing.assert_allclose(stream.times, arrived, rtol=1e-12)
        assert (stream.prompt_tokens, stream.generated) == (30, 5)
    row = level_row(level, options)
    assert row["seconds"] == pytest.approx(3 * 0.8)
    assert row["tokens_per_second"] == pytest.approx(15 / 2.4)
    assert row["request_tokens_per_second"] == pytest.approx(4 / 0.55)
    assert row["first_token_ms"] == pytest.approx({"p50": 250, "p95": 250, "p99": 250})
    gaps = sorted([10, 20, 20, 500] * 3)
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        low = int(share * 11)
        between = gaps[low] + (share * 11 - low) * (gaps[min(11, low + 1)] - gaps[low])
        assert row["between_ms"][name] == pytest.approx(between)
    assert row["prompt_tokens"] == 16
    assert row["prompt_tokens_read"] == 30
    assert all(body["ignore_eos"] and body["stream"] for body in asked)
    prompts = [tuple(body["prompt"]) for body in asked]
    assert len(set(prompts)) == len(prompts) == 1 + 1 + 3


def test_clients_are_there_at_the_same_time(codec):
    together = threading.Barrier(4)
    serial = iter([True])

    def stream(write) -> None:
        if not next(serial, False):
            together.wait(20)
        write(event("x") + event("y") + usage_event(16, 2) + DONE)

    options = StreamingOptions(concurrency=(4,), prompt=16, generate=2, requests=8)
    with serve(server(codec, stream)) as served:
        (level,) = measure_streaming(find_endpoint(served.url), codec, options)
    assert [stream.failure for stream in level.streams] == [""] * 8


def test_failures_are_counted_and_not_repeated(codec):
    number = iter(range(99))

    def stream(write) -> None:
        count = next(number)
        write(event("x") + event("y"))
        if count == 4:
            raise ConnectionAbortedError
        if count == 5:
            write(b'data: {"error": {"message": "out of memory"}}\n\n')
        if count == 6:
            write(b"data: {\n\n")
        if count != 7:
            write(DONE)

    busy = iter([True])

    def fault(handler) -> bool:
        if handler.path.endswith("completions") and len(served.requests) == 8 and next(busy, False):
            reply(handler, 503, {"error": {"message": "queue is full"}})
            return True
        return False

    options = StreamingOptions(concurrency=(1,), prompt=16, generate=2, requests=8)
    with serve(server(codec, stream, fault=fault)) as served:
        (level,) = measure_streaming(find_endpoint(served.url), codec, options)
        assert len(served.requests) == 2 + 8
    row = level_row(level, options)
    assert (row["requests"], row["failed"]) == (8, 5)
    assert sum(row["failures"].values()) == 5
    for said in ("broke off", "out of memory", "no completion", "queue is full"):
        assert any(said in reason for reason in row["failures"]), said
    # the server does not count, so pieces are
    assert row["generated_tokens"] == row["pieces"] == 3 * 2
    assert "5 failed" in streaming_table({"streaming": [{"artefact": "a"} | row]}).rows[0][2]


@pytest.mark.parametrize(
    ("known", "ids"),
    [
        ({"ids", "ignore_eos", "stream_options"}, True),
        ({"ignore_eos", "stream_options"}, False),
        ({"stream_options"}, False),
        (set(), False),
    ],
)
def test_a_server_is_asked_for_no_more_than_it_knows(codec, known, ids):
    def stream(write) -> None:
        write(event("x") + event("y") + DONE)

    def fault(handler) -> bool:
        asked = handler.asked if handler.command == "POST" else {}
        used = {"ignore_eos", "stream_options"} & asked.keys()
        used |= {"ids"} if not isinstance(asked.get("prompt", ""), str) else set()
        if asked.get("stream") and not used <= known:
            reply(handler, 400, {"error": {"message": "unknown field"}})
            return True
        return False

    options = StreamingOptions(concurrency=(1,), prompt=16, generate=2, requests=3)
    with serve(server(codec, stream, fault=fault)) as served:
        (level,) = measure_streaming(find_endpoint(served.url), codec, options)
        asked = [body for _, body in served.requests[-3:]]
    assert [stream.failure for stream in level.streams] == [""] * 3
    for body in asked:
        assert {"ignore_eos", "stream_options"} & body.keys() == known - {"ids"}
        tokens = body["prompt"] if ids else codec.encode(body["prompt"], parse_special=True)
        assert len(tokens) == 16


def test_a_level_where_all_failed_has_no_figures():
    stream = Stream(1.0, (), None, None, "gone")
    row = level_row(Level(2, (stream, stream), 3.0), StreamingOptions())
    for name in ("tokens_per_second", "request_tokens_per_second", "first_token_ms", "between_ms"):
        assert row[name] is None
    assert row["failures"] == {"gone": 2}
    assert "–" in streaming_table({"streaming": [{"artefact": "a"} | row]}).rows[0]


def test_rows_go_through_every_report(codec):
    def stream(write) -> None:
        write(event("x") + event("y") + usage_event(4, 2) + DONE)

    options = StreamingOptions(concurrency=(1, 3), prompt=12, generate=2, requests=3)
    with serve(server(codec, stream)) as served:
        rows = stream_endpoint(find_endpoint(served.url), codec, options)
        again = stream_endpoint(find_endpoint(served.url), codec, options)
        prompts = [tuple(body["prompt"]) for _, body in served.requests if "stream" in body]
    assert rows[0]["seed"] == rows[1]["seed"] != again[0]["seed"]
    assert len(set(prompts)) == len(prompts)
    seeded = StreamingOptions(concurrency=(1,), prompt=12, generate=2, requests=3, seed=5)
    with serve(server(codec, stream)) as served:
        for _ in range(2):
            [row] = stream_endpoint(find_endpoint(served.url), codec, seeded)
            assert row["seed"] == 5
        prompts = [body["prompt"] for _, body in served.requests if "stream" in body]
    assert prompts[: len(prompts) // 2] == prompts[len(prompts) // 2 :]
    machine = {"machine": {}, "text": {}, "reference": {"artefact": "float"}}
    report = {"runs": [machine], "results": [], "streaming": rows}
    other = json.loads(json.dumps(report)) | {"runs": [machine | {"machine": {"cores": 2}}]}
    merged = merge_reports([report, other])
    assert [row["run"] for row in merged["streaming"]] == [0, 0, 1, 1]
    for text in (report_html(merged), report_markdown(merged)):
        assert text.count(rows[0]["artefact"]) == 4
        assert STREAMING_NOTE in text


def test_a_server_that_does_not_stream_is_an_error(codec):
    silent = server(codec, lambda write: write(DONE))
    with serve(silent) as served, pytest.raises(EndpointError, match="no text"):
        stream_endpoint(find_endpoint(served.url), codec, StreamingOptions(prompt=4))


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": ()},
        {"concurrency": (0,)},
        {"concurrency": (10_000,)},
        {"generate": 1},
    ],
)
def test_senseless_options_are_refused_before_a_server_is_asked(options):
    with pytest.raises(UsageError):
        StreamingOptions(**options)


def test_prompts_of_no_tokens_are_refused(codec):
    with serve(server(codec, lambda write: None)) as served, pytest.raises(UsageError):
        measure_streaming(find_endpoint(served.url), codec, StreamingOptions(prompt=0))


def test_the_tokenizer_is_that_of_what_is_served_or_must_be_named(demo_folder, demo_ggufs, codec):
    text = "Once upon a time"
    expected = codec.encode(text, parse_special=True).tolist()
    for name, served in (
        (None, ("unknown", str(demo_folder))),
        (None, (str(demo_ggufs["Q8_0"]),)),
        ("demo", ("unknown",)),
    ):
        found = open_tokenizer(name, served, offline=True)
        assert found.encode(text, parse_special=True).tolist() == expected
    with pytest.raises(UsageError, match="'unknown'") as caught:
        open_tokenizer(None, ("unknown",))
    assert "--tokenizer" in caught.value.hint


@pytest.mark.peer
def test_llama_server_with_four_slots(llama_server, codec):
    options = StreamingOptions(concurrency=(1, 4), prompt=48, generate=6, requests=4)
    rows = stream_endpoint(find_endpoint(llama_server), codec, options)
    assert [row["concurrency"] for row in rows] == [1, 4]
    for row in rows:
        assert row["failed"] == 0
        assert row["prompt_tokens_read"] == 48
        assert row["generated_tokens"] == 4 * 6
        assert row["tokenizer_checked"]
        between = row["between_ms"]
        assert 0 < between["p50"] <= between["p95"] <= between["p99"]
    json.dumps(rows)


def test_request_rates_follow_from_the_times():
    streams = tuple(
        Stream(start, tuple(start + 1 + gap * i for i in range(5)), 9, 5)
        for start, gap in ((0.0, 0.5), (2.0, 0.25), (4.0, 1.0))
    )
    row = level_row(Level(1, streams, 10.0), StreamingOptions())
    assert row["request_tokens_per_second"] == pytest.approx(2)
    assert row["tokens_per_second"] == pytest.approx(1.5)
    gaps = [b - a for s in streams for a, b in pairwise(s.times)]
    assert row["between_ms"]["p50"] == pytest.approx(1e3 * float(np.median(gaps)))


def test_a_named_models_tokenizer_comes_alone(demo_folder, codec, monkeypatch, tmp_path):
    as_nobody(monkeypatch)
    with HubServer() as local:
        local.repos["someone/Qwen3-tiny"] = Repo(folder_files(demo_folder))
        monkeypatch.setattr(
            hub, "default_site", lambda *, offline=False: HubSite(local.endpoint, tmp_path, offline)
        )
        found = open_tokenizer("someone/Qwen3-tiny", ("served",))
        assert local.served_bytes("tokenizer.json") > 0
        assert not local.file_requests("model.safetensors")
    text = "Once upon a time"
    expected = codec.encode(text, parse_special=True).tolist()
    assert found.encode(text, parse_special=True).tolist() == expected
