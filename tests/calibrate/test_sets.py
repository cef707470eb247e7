"""The shipped set: what its data sheet promises, and that no sample repeats another."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest
from tokenizers import Tokenizer

from qwen3q.calibrate.samples import Sample
from qwen3q.calibrate.sets import load_set, set_names, sets_folder
from qwen3q.data.texts import PARTS, evaluation_text
from qwen3q.errors import UsageError
from qwen3q.models.tokenizer import load_tokenizer

GRAM = 40
"""Characters; about ten English words' worth, or a Chinese sentence and a half."""


@pytest.fixture(scope="module")
def balanced() -> list[Sample]:
    return load_set("balanced")


def words(sample: Sample) -> str:
    """What the sample says, without markup and schemas, spaces made equal."""
    if sample.text is not None:
        return " ".join(sample.text.split())
    said = (
        f"{message.get('reasoning_content', '')} {message['content']}"
        for message in sample.messages
    )
    return " ".join(" ".join(said).split())


def grams(text: str, size: int = GRAM) -> set[str]:
    return {text[at : at + size] for at in range(len(text) - size + 1)}


def fewest_tokens(sample: Sample, tokenizer: Tokenizer) -> float:
    """A low count of Qwen3's tokens of a sample's content, markup left out.

    No token crosses the pieces that Qwen's pattern splits a text into, so an ASCII piece is at
    least one token. Longer pieces in other scripts count by characters: Qwen3's tokenizer
    measured 1.5 per token of Chinese, and 2 to 3 of the others.
    """
    calls = [message.get("tool_calls", "") for message in sample.messages]
    thoughts = [message.get("reasoning_content", "") for message in sample.messages]
    said = sample.text or "\n".join(message["content"] for message in sample.messages)
    text = "\n".join([said, *thoughts, json.dumps([calls, sample.tools])])
    pieces = [text[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    han = [sum("\u4e00" <= char <= "\u9fff" for char in piece) for piece in pieces]
    other = [sum(char >= "\x80" for char in piece) for piece in pieces]
    return sum(max(1, h / 1.7 + (o - h) / 3.5) for h, o in zip(han, other, strict=True))


def test_size_and_variety(balanced, demo_folder):
    assert len(balanced) >= 256
    tokenizer = load_tokenizer(demo_folder)
    assert sum(fewest_tokens(sample, tokenizer) for sample in balanced) >= 60_000
    kinds = Counter(sample.kind for sample in balanced)
    assert kinds.keys() == {"chat", "prose", "code", "mathematics", "tools"}
    assert min(kinds.values()) >= 20
    languages = Counter(sample.language for sample in balanced)
    assert {"en", "zh", "de", "fr", "es", "pt", "ru", "ar", "ja", "ko", "hi", "vi"} <= set(
        languages
    )
    assert languages["zh"] >= 30
    chats = [sample for sample in balanced if sample.messages]
    assert 0.3 < sum(sample.thinks for sample in chats) / len(chats) < 0.7
    assert sum(len(sample.messages) > 3 for sample in chats) >= 15


def test_every_sample_is_well_formed(balanced):
    ids = [sample.id for sample in balanced]
    assert len(set(ids)) == len(ids)
    for sample in balanced:
        if sample.text is not None:
            assert sample.text.strip(), sample.id
            continue
        roles = [message["role"] for message in sample.messages if message["role"] != "system"]
        assert roles[0] == "user", sample.id
        assert roles[-1] == "assistant", sample.id
        assert all(a != b or a == "tool" for a, b in pairwise(roles)), sample.id


def test_calls_fit_their_schemas(balanced):
    """Every call names an offered function, with its required arguments and no others."""
    calls = 0
    for sample in balanced:
        offered = {tool["function"]["name"]: tool["function"] for tool in sample.tools}
        for message in sample.messages:
            for call in message.get("tool_calls", ()):
                calls += 1
                schema = offered[call["function"]["name"]].get("parameters", {})
                given = call["function"]["arguments"].keys()
                assert set(schema.get("required", ())) <= given <= set(schema["properties"])
    assert calls >= 25


def test_mostly_authored_and_the_rest_reproducible(balanced, tmp_path):
    folder = sets_folder()
    worked = (folder / "balanced" / "worked.jsonl").read_text("utf-8")
    made = {json.loads(line)["id"] for line in worked.splitlines()}
    lengths = {sample.id: len(words(sample)) for sample in balanced}
    assert sum(lengths[name] for name in made) < sum(lengths.values()) / 3
    spec = importlib.util.spec_from_file_location("make_worked", folder / "make_worked.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.encode() == worked


def test_sums_in_worked_samples_are_right(balanced):
    """Python's own arithmetic on every ``a × b = c`` that an answer states."""
    checked = 0
    for sample in balanced:
        if sample.id.startswith("multiplication-"):
            left, right = sample.messages[-1]["content"].split(" = ")
            a, b = left.split(" × ")
            assert int(a) * int(b) == int(right.strip("*"))
            checked += 1
    assert checked >= 5


def test_no_near_duplicates(balanced):
    found = [grams(words(sample)) for sample in balanced]
    seen = Counter(gram for one in found for gram in one)
    repeated = sum(count for count in seen.values() if count > 1)
    assert repeated / sum(seen.values()) < 0.01
    worked = (sets_folder() / "balanced" / "worked.jsonl").read_text("utf-8")
    generated = {json.loads(line)["id"] for line in worked.splitlines()}
    for sample, one in zip(balanced, found, strict=True):
        most = 0.3 if sample.id in generated else 0.05
        shared = sum(seen[gram] > 1 for gram in one)
        assert shared <= most * max(len(one), 1), sample.id


def test_near_duplicates_would_be_noticed(balanced):
    """The measure itself: a sample with one word changed shares nearly all its grams."""
    text = words(max(balanced, key=lambda sample: len(words(sample))))
    changed = text.replace(text.split()[10], "otherwise", 1)
    assert len(grams(text) & grams(changed)) > 0.8 * len(grams(text))


def test_evaluation_text_is_held_out(balanced):
    calibration = set().union(*(grams(words(sample), 60) for sample in balanced))
    for part in PARTS:
        text = " ".join(evaluation_text(part).split())
        assert len(text) > 3500
        assert not calibration & grams(text, 60), part


def test_unknown_set_is_named_with_what_was_meant():
    assert set_names() == ["balanced"]
    with pytest.raises(UsageError, match="no calibration set 'balance'") as failure:
        load_set("balance")
    assert "Did you mean balanced?" in failure.value.hint


def test_loading_needs_no_heavy_package():
    code = "import sys, qwen3q.calibrate.load; print({'torch','llama_cpp'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
