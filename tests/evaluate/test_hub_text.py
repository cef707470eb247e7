"""Hub sets against GPTQ's procedure written down naively, served by a Hub on loopback."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow
import pytest
from hub_server import HubServer, Repo
from pyarrow import parquet

from qwen3q.errors import SourceError, UsageError
from qwen3q.evaluate.artefact import find_artefact
from qwen3q.evaluate.chunks import Scored
from qwen3q.evaluate.hub_text import find_text
from qwen3q.evaluate.tokens import open_codec
from qwen3q.evaluate.windows import DocumentWindows, text_chunks, text_digest
from qwen3q.models.hub import HubSite

LINES = ["", " = A title = \n", "", " The boy hid the lamp near the river . \n", ""] * 40
RAW = "\n = A title = \n\n The boy hid the lamp near the river . \n\n"


def parquet_file(column: str, values: list[str]) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.table({column: values}), out)
    return out.getvalue()


def zip_file(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return out.getvalue()


def documents() -> list[str]:
    rng = random.Random(7)
    words = [
        "the",
        "boy",
        "girl",
        "hid",
        "found",
        "a",
        "lamp",
        "near",
        "river",
        "garden",
        ".",
        "and",
        "then",
    ]
    return [" ".join(rng.choices(words, k=rng.randint(5, 160))) for _ in range(1200)]


@pytest.fixture(scope="module")
def hub():
    c4 = "".join(json.dumps({"text": text, "url": ""}) + "\n" for text in documents())
    with HubServer() as server:
        server.repos = {
            "datasets/Salesforce/wikitext": Repo(
                {"wikitext-2-raw-v1/test-00000-of-00001.parquet": parquet_file("text", LINES)}
            ),
            "datasets/ggml-org/ci": Repo(
                {"wikitext-2-raw-v1.zip": zip_file("wikitext-2-raw/wiki.test.raw", RAW.encode())}
            ),
            "datasets/allenai/c4": Repo(
                {"en/c4-validation.00000-of-00008.json.gz": gzip.compress(c4.encode())}
            ),
            "datasets/ptb-text-only/ptb_text_only": Repo(
                {
                    "penn_treebank/validation/0000.parquet": parquet_file("sentence", ["a", "b"]),
                    "penn_treebank/test/0000.parquet": parquet_file("sentence", ["c", "d"]),
                }
            ),
        }
        yield server


@pytest.fixture
def site(hub, monkeypatch, tmp_path) -> None:
    def local(*, offline: bool = False) -> HubSite:
        return HubSite(hub.endpoint, tmp_path / "cache", offline)

    monkeypatch.setattr("qwen3q.models.hub.default_site", local)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("hub:wikitext-2", "\n\n".join(LINES)),
        ("hub:wikitext-2:raw", RAW.removesuffix("\n")),
        ("hub:c4:new", " ".join(documents()[:1100])),
        ("hub:ptb", "a\n\nb"),
        ("hub:ptb:new", "c d"),
    ],
)
def test_content(site, name, content):
    assert find_text(name).load(False) == content


def test_the_published_procedures_come_with_the_sets():
    gptq, llama, new = map(find_text, ("hub:wikitext-2", "hub:wikitext-2:raw", "hub:c4:new"))
    assert (gptq.context, gptq.scored, gptq.max_chunks) == (2048, Scored.FULL, None)
    assert (llama.context, llama.scored, llama.max_chunks) == (512, Scored.HALF, None)
    assert (new.context, new.scored, new.max_chunks) == (2048, Scored.FULL, 256)
    assert [text.parse_special for text in (gptq, llama, new, find_text(None))] == [1, 0, 1, 1]


def test_c4_windows_are_gptqs(site):
    from tokenizers import Tokenizer

    artefact = find_artefact("demo")
    tokenizer = Tokenizer.from_file(str(artefact.path / "tokenizer.json"))
    context, texts = 64, documents()
    random.seed(0)
    expected = []
    for _ in range(256):
        while True:
            ids = tokenizer.encode(texts[random.randint(0, len(texts) - 1)]).ids
            if len(ids) > context:
                break
        start = random.randint(0, len(ids) - context - 1)
        expected.append(ids[start : start + context])
    windows = find_text("hub:c4").load(False)
    made = text_chunks(windows, open_codec(artefact), context, None, parse_special=False)
    np.testing.assert_array_equal(made, expected)
    assert text_digest(windows) != text_digest(DocumentWindows(windows.documents, 256, seed=1))
    assert text_digest(windows) != text_digest(DocumentWindows(windows.documents[1:], 256))
    assert text_digest(windows) != text_digest(DocumentWindows(windows.documents, 255))


def test_a_whole_text_is_cut_into_all_its_chunks():
    codec, text = open_codec(find_artefact("demo")), "A few words and a line.\n" * 40
    tokens = codec.encode(text, parse_special=False)
    for most in (None, 2):
        made = text_chunks(text, codec, 16, most, parse_special=False)
        np.testing.assert_array_equal(made.ravel(), tokens[: 16 * (most or len(tokens) // 16)])


def test_documents_that_are_all_too_short():
    windows = DocumentWindows(("a b c", "d e f"), 4)
    with pytest.raises(UsageError, match="No document has more than 64 tokens"):
        text_chunks(windows, open_codec(find_artefact("demo")), 64, None, parse_special=False)


def test_eval_over_a_hub_set(hub, demo_ggufs, tmp_path):
    words = [sys.executable, "-m", "qwen3q", "eval", str(demo_ggufs["Q8_0"])]
    words += ["--reference", str(demo_ggufs["BF16"]), "--text", "hub:wikitext-2"]
    words += ["--context", "128", "--threads", "1", "--json"]
    env = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, env=env, check=True)
    report = json.loads(done.stdout)
    facts = report["runs"][0]["reference"]
    assert report["runs"][0]["text"]["name"] == "hub:wikitext-2"
    assert (facts["context"], facts["first"]) == (128, 0)
    assert facts["tokens"] == 127 * facts["chunks"]


def test_no_such_set_no_hub_or_a_broken_file(site, hub, monkeypatch):
    with pytest.raises(UsageError, match="'hub:wikitext-103' is no text set"):
        find_text("hub:wikitext-103")
    with pytest.raises(SourceError, match="not downloaded"):
        find_text("hub:c4").load(True)
    repo = hub.repos["datasets/ggml-org/ci"]
    monkeypatch.setitem(repo.files, "wikitext-2-raw-v1.zip", b"no archive")
    with pytest.raises(SourceError, match="is not what the Hub"):
        find_text("hub:wikitext-2:raw").load(False)
    monkeypatch.delitem(hub.repos, "datasets/ptb-text-only/ptb_text_only")
    with pytest.raises(SourceError, match="is not on the Hub"):
        find_text("hub:ptb").load(False)
