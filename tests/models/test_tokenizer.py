"""A folder's tokenizer files, and what is said of broken ones."""

from __future__ import annotations

import json
import shutil

import pytest

from qwen3q.errors import ModelError
from qwen3q.models.tokenizer import load_tokenizer, read_chat_template, read_tokenizer


@pytest.fixture
def folder(demo_folder, tmp_path):
    """The demo's tokenizer, to be changed."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_folder / name, tmp_path)
    return tmp_path


def test_what_is_read_is_what_tokenizers_reads(folder):
    files, theirs = read_tokenizer(folder), load_tokenizer(folder)
    whole = files.vocab | {token.content: token.id for token in files.added}
    assert whole == theirs.get_vocab(with_added_tokens=True)
    assert {t.content for t in files.added} == {
        token.content for token in theirs.get_added_tokens_decoder().values()
    }
    assert files.named_id("eos_token") == theirs.token_to_id("<|im_end|>")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model", "vocab"), "x"),
        (("model", "merges"), 4),
        (("pre_tokenizer", "pretokenizers"), [[]]),
        (("pre_tokenizer", "pretokenizers", 0, "pattern"), [1]),
        (("added_tokens", 0, "content"), 0),
        (("added_tokens", 0, "id"), "0"),
    ],
)
def test_a_misshapen_tokenizer_is_refused(folder, place, value):
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text())
    part = raw
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    path.write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=r"tokenizer\.json is no byte-level BPE") as caught:
        read_tokenizer(folder)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ("{{ a }}", "{{ a }}"),
        ([{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([[], 4, {"name": "tools", "template": "t"}], None),
        (4, None),
    ],
)
def test_the_default_template_is_taken(tmp_path, stated, found):
    assert read_chat_template(tmp_path, {"chat_template": stated}) == found


def test_a_template_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "chat_template.jinja"
    path.write_bytes("größer".encode("latin-1"))
    with pytest.raises(ModelError, match=r"chat_template\.jinja: it is no UTF-8 text"):
        read_chat_template(tmp_path, {})
