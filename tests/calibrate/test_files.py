"""Calibration from a user's own files and from the Hub: what is read, and what is refused how."""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace

import pytest

from qwen3q.calibrate.files import read_records
from qwen3q.calibrate.hub_set import HubSet, parse_hub_set, stream_hub_set
from qwen3q.calibrate.load import CalibrationOptions, check_calibration, load_calibration
from qwen3q.calibrate.rows import encode
from qwen3q.calibrate.samples import parse_record
from qwen3q.errors import MissingPackageError, SourceError, UsageError
from qwen3q.models.source import resolve
from qwen3q.models.tokenizer import load_tokenizer

TEXT = "".join(f"<|im_start|>user\nLine {n} of the text.<|im_end|>\n" for n in range(200))


@pytest.fixture(scope="module")
def demo():
    return resolve("demo")


def options(**changes) -> CalibrationOptions:
    return CalibrationOptions(**({"length": 32} | changes))


def write(path, content):
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_text_is_tokenized_once_and_cut(demo, tmp_path):
    """Rows joined are the tokens of the whole text, chat markup as single tokens."""
    name = write(tmp_path / "a.txt", TEXT)
    loaded = load_calibration(name, demo, options())
    tokens = encode(load_tokenizer(demo.folder), TEXT)
    joined = [token for row in loaded.rows for token in row]
    assert joined == tokens[: len(joined)]
    assert len(tokens) - len(joined) < 32
    assert tokens.count(load_tokenizer(demo.folder).token_to_id("<|im_start|>")) == 200


def test_broken_unicode_is_replaced(demo, tmp_path):
    name = write(tmp_path / "a.jsonl", '{"text": "a \\ud800 b"}\n' * 20)
    assert load_calibration(name, demo, options()).rows


def test_fewer_rows_are_spread_over_the_text(demo, tmp_path):
    name = write(tmp_path / "a.txt", TEXT)
    every = load_calibration(name, demo, options()).rows
    some = load_calibration(name, demo, options(samples=4)).rows
    places = [every.index(row) for row in some]
    assert places == [0, len(every) // 4, len(every) * 2 // 4, len(every) * 3 // 4]


def test_description_counts_and_tells_texts_apart(demo, tmp_path):
    name = write(tmp_path / "a.txt", TEXT)
    first = load_calibration(name, demo, options(samples=3)).description
    assert (first["samples"], first["length"], first["tokens"]) == (3, 32, 96)
    other = load_calibration(write(tmp_path / "b.txt", "x" + TEXT), demo, options(samples=3))
    assert other.description["fingerprint"] != first["fingerprint"]
    again = load_calibration(name, demo, options(samples=3)).description
    assert again == first


def test_jsonl_of_texts_and_chats(demo, tmp_path):
    lines = [
        {"text": "A plain text about the weather on the coast."},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]},
        {"conversations": [{"from": "human", "value": "And"}, {"from": "gpt", "value": "so"}]},
    ]
    name = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines * 40)))
    loaded = load_calibration(name, demo, options())
    tokenizer = load_tokenizer(demo.folder)
    text = tokenizer.decode([t for row in loaded.rows for t in row], skip_special_tokens=False)
    assert text.count("<|im_start|>user\nHi<|im_end|>") > 30
    assert text.count("<|im_start|>user\nAnd<|im_end|>") > 30
    assert text.count("on the coast.<|endoftext|>") > 30


def test_parquet(demo, tmp_path):
    import pyarrow
    from pyarrow import parquet

    chats = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]] * 30
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"messages": chats, "id": list(range(30))}), path)
    samples = read_records(path)
    assert [dict(m) for m in samples[7].messages] == chats[7]
    assert len(load_calibration(str(path), demo, options()).rows) > 5
    parquet.write_table(pyarrow.table({"body": ["x"]}), path)
    with pytest.raises(UsageError, match="no column text, messages or conversations; it has body"):
        read_records(path)
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(UsageError, match=r"no valid parquet: .*[^.]\.$"):
        read_records(path)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingPackageError, match="needs pyarrow"):
        read_records(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "is empty"),
        ("a.txt", " \n\n", "is empty"),
        ("a.txt", b"caf\xe9", "no UTF-8 text: byte 3"),
        ("a.txt", "Too short.", r"holds \d+ tokens; 1 row of 32 needs 32"),
        ("a.jsonl", "\n\n", "is empty"),
        ("a.jsonl", '{"text": "x"}\n{"text": ', "line 2 is no JSON"),
        ("a.jsonl", "[1]\n", "line 1 is no JSON object"),
        ("a.jsonl", '{"prompt": "x"}', "no text, messages or conversations; it has prompt"),
        ("a.jsonl", '{"messages": 3}', "messages holds neither text nor a conversation"),
        ("a.jsonl", '{"messages": [{"role": "narrator", "content": "x"}]}', "role is 'narrator'"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": 5}]}', "content is no text"),
        ("a.jsonl", '{"messages": ["x"]}', "a message is no object"),
        ("a.jsonl", '{"text": "x"}\n{"messages": "no list"}', "line 2: messages is text, not a"),
        ("a.jsonl", '{"conversations": "x"}', "line 1: conversations is text, not a list"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', "line 1: a message of role user has no"),
        ("a.jsonl", '{"messages": [{"role": "assistant"}]}', "of role assistant has no content"),
        ("a.jsonl", '{"id": 1, "text": null}', "line 1 has no text, .*; its text is null"),
    ],
)  # fmt: skip
def test_bad_files(demo, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=message) as caught:
        load_calibration(str(path), demo, options())
    assert caught.value.hint


@pytest.mark.parametrize("name", [None, "self", "balanced", "hub:org/name", "hub:org/name:a:b:c"])
def test_what_can_be_calibrated_with_passes_the_first_look(name):
    check_calibration(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hub:", "'hub:' is no data set"),
        ("hub:org/name:a:b:c:d", "is no data set"),
        ("no/such.jsonl", r"no/such\.jsonl"),
        ("balancd", "'balancd'"),
    ],
)
def test_what_can_not_is_refused_at_the_first_look(name, message):
    with pytest.raises(UsageError, match=message) as caught:
        check_calibration(name)
    assert caught.value.hint


def test_names_that_lead_nowhere(demo, tmp_path):
    (tmp_path / "prose.txt").touch()
    with pytest.raises(UsageError, match="There is no file") as caught:
        load_calibration(str(tmp_path / "prosa.txt"), demo, options())
    assert caught.value.hint == f"Did you mean {tmp_path / 'prose.txt'}?"
    with pytest.raises(UsageError, match="is a folder"):
        load_calibration(str(tmp_path), demo, options())
    os.mkfifo(tmp_path / "pipe")  # as a shell's <(...) is
    with pytest.raises(UsageError, match="is a pipe or device"):
        load_calibration(str(tmp_path / "pipe"), demo, options())
    with pytest.raises(UsageError, match="no calibration set 'ballanced'"):
        load_calibration("ballanced", demo, options())
    with pytest.raises(UsageError, match="too short"):
        load_calibration(None, demo, options(length=1))
    with pytest.raises(UsageError, match="--calibration-samples 0"):
        load_calibration(None, demo, options(samples=0))


@pytest.mark.parametrize("calls", [1, "x", [1], [{"function": {}}], [{"name": "f"}]])
def test_a_broken_call_of_tools_is_refused(demo, tmp_path, calls):
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": calls}]
    name = write(tmp_path / "a.jsonl", json.dumps({"messages": messages}))
    with pytest.raises(UsageError, match=r"line 1: a tool call has no name or no arguments\."):
        load_calibration(name, demo, options())


def test_a_call_of_tools_needs_no_content():
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    sample = parse_record({"messages": [{"role": "user", "content": "?"}, call]}, "x")
    assert sample.messages[1]["content"] == ""


def test_a_column_that_is_asked_for_by_name_may_hold_text():
    assert parse_record({"conversations": "x"}, "here", "conversations").text == "x"


def test_thinking_inside_the_answer_is_set_apart():
    answer = {"role": "assistant", "content": "<think>\n2 + 2\n</think>\n\nFour."}
    sample = parse_record({"messages": [{"role": "user", "content": "?"}, answer]}, "x")
    assert sample.thinks
    assert sample.messages[1]["reasoning_content"] == "2 + 2"
    assert sample.messages[1]["content"] == "Four."
    empty = {"role": "assistant", "content": "<think>\n\n</think>\n\nFour."}
    sample = parse_record({"messages": [{"role": "user", "content": "?"}, empty]}, "x")
    assert not sample.thinks
    assert sample.messages[1]["content"] == "Four."


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hub:org/name", HubSet("org/name")),
        ("hub:org/name:en", HubSet("org/name", "en")),
        ("hub:org/name:en:validation:body", HubSet("org/name", "en", "validation", "body")),
        ("hub:org/name:::body", HubSet("org/name", None, "train", "body")),
    ],
)
def test_hub_names(name, expected):
    assert parse_hub_set(name) == expected


@pytest.mark.parametrize("name", ["hub:", "hub:org/name:a:b:c:d"])
def test_bad_hub_names(name):
    with pytest.raises(UsageError, match="is no data set"):
        parse_hub_set(name)


def test_hub_without_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackageError, match="needs the package datasets"):
        next(stream_hub_set(HubSet("org/name"), 0))


def test_hub_failure_is_one_sentence(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no such split 'tarin'\nmore lines")

    fake = SimpleNamespace(config=SimpleNamespace(), load_dataset=refuse)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(SourceError, match=r"org/name can't be read: no such split 'tarin'\.$"):
        next(stream_hub_set(HubSet("org/name"), 0))


def test_hub_set_through_datasets(demo, tmp_path, monkeypatch):
    """The package itself, on a data set laid out like a repository."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    lines = [json.dumps({"body": f"Document {n} about a lighthouse.", "n": n}) for n in range(90)]
    write(tmp_path / "org" / "name" / "train.jsonl", "\n".join(lines))
    loaded = load_calibration("hub:org/name:::body", demo, options())
    text = load_tokenizer(demo.folder).decode([t for row in loaded.rows for t in row])
    assert text.count("about a lighthouse.") > 60
    assert loaded.rows == load_calibration("hub:org/name:::body", demo, options()).rows
    with pytest.raises(UsageError, match="has no text, messages or conversations; it has body, n"):
        load_calibration("hub:org/name", demo, options())
    with pytest.raises(SourceError, match="org/name can't be read"):
        load_calibration("hub:org/name::tarin:body", demo, options())
