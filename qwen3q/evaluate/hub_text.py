"""The usual evaluation sets of the Hub, cut as the scripts did that published figures on them.

``wikitext-2``, ``c4`` and ``ptb`` follow GPTQ's ``datautils.py`` (github.com/IST-DASLab/gptq):
windows of 2048 tokens, scored in full; ``:new`` are its later variants. ``wikitext-2:raw`` is the
file that llama.cpp's ``scripts/get-wikitext-2.sh`` fetches, scored as llama-perplexity does.
"""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from qwen3q.data.texts import evaluation_text
from qwen3q.errors import MissingPackageError, SourceError, UsageError
from qwen3q.evaluate.chunks import Scored, read_as_llama
from qwen3q.evaluate.windows import DocumentWindows

PREFIX = "hub:"
GPTQ_CONTEXT = 2048
GPTQ_WINDOWS = 256
_NEW_C4_DOCUMENTS = 1100
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class MeasuredText:
    """A text and the procedure that goes with it.

    Attributes:
        load: its content; the argument is whether the Hub may not be asked.
        context: tokens per chunk.
        max_chunks: None for all.
        parse_special: read chat markup as tokens, as Hugging Face's tokenizers do.
    """

    name: str
    load: Callable[[bool], str | DocumentWindows]
    context: int = 512
    scored: Scored = Scored.HALF
    max_chunks: int | None = None
    parse_special: bool = False


@dataclass(frozen=True, slots=True)
class HubText:
    """Where a set is and how it is cut.

    Attributes:
        read: documents of the downloaded file.
        cut: what of the documents is measured.
    """

    repo: str
    revision: str
    file: str
    read: Callable[[Path], list[str]]
    cut: Callable[[list[str]], str | DocumentWindows]

    def load(self, offline: bool = False) -> str | DocumentWindows:
        """Downloads the set, or finds it in huggingface_hub's cache.

        Raises:
            MissingPackageError: a Parquet file needs ``pyarrow``.
            SourceError: the Hub can't be reached, or the file is not what it should be.
        """
        path = _download(self, offline)
        try:
            documents = self.read(path)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise SourceError(
                f"{path} is not what the Hub's {self.repo} should hold: {error}.",
                "Remove it and run it again.",
            ) from None
        if not documents:
            raise SourceError(f"{path} holds no text.")
        return self.cut(documents)


def find_text(name: str | None) -> MeasuredText:
    """What ``--text`` names: a file, ``hub:SET``, or the built-in text if None.

    Raises:
        UsageError: no procedure is known for a set.
    """
    if name is None:
        return MeasuredText("the built-in text", lambda _: evaluation_text(), parse_special=True)
    if not name.startswith(PREFIX):
        path = Path(name)
        return MeasuredText(path.name, lambda _: read_as_llama(path))
    for known in _TEXTS:
        if known.name == name:
            return known
    raise UsageError(
        f"{name!r} is no text set.",
        f"Known: {', '.join(known.name for known in _TEXTS)}; or give a file.",
    )


def _download(text: HubText, offline: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from qwen3q.models.hub import default_site
    from qwen3q.models.hub_errors import explain_hub_errors
    from qwen3q.models.hub_transfer import quiet_hub

    site = default_site(offline=offline)
    with explain_hub_errors(f"datasets/{text.repo}", text.revision, site.endpoint), quiet_hub():
        try:
            return Path(
                hf_hub_download(
                    text.repo,
                    text.file,
                    repo_type="dataset",
                    revision=text.revision,
                    cache_dir=site.cache,
                    endpoint=site.endpoint,
                    local_files_only=site.offline,
                )
            )
        except LocalEntryNotFoundError:
            raise SourceError(
                f"The data set {text.repo} is not downloaded, and the Hub at {site.endpoint} "
                f"{'may not be asked (offline)' if site.offline else 'can not be reached'}.",
                "Check the network and HF_ENDPOINT, or give a file to --text.",
            ) from None


def _parquet_column(column: str) -> Callable[[Path], list[str]]:
    def read(path: Path) -> list[str]:
        try:
            from pyarrow import parquet
        except ImportError:
            raise MissingPackageError(
                f"{path.name} needs the package pyarrow.", "pip install 'qwen3q[tasks]'"
            ) from None
        values = parquet.read_table(path, columns=[column]).column(column).to_pylist()
        return [str(value) for value in values]

    return read


def _json_lines(path: Path) -> list[str]:
    with gzip.open(path, "rb") as file:
        return [str(json.loads(line)["text"]) for line in _bounded(file).splitlines()]


def _wiki_test_raw(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive, archive.open("wikitext-2-raw/wiki.test.raw") as file:
        return [_bounded(file).decode("utf-8").removesuffix("\n")]


def _bounded(file: IO[bytes] | gzip.GzipFile) -> bytes:
    data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it unpacks to more than {_MOST_BYTES >> 20} MiB")
    return data


def _gptq(
    name: str,
    repo: tuple[str, str],
    file: str,
    read: Callable[[Path], list[str]],
    cut: Callable[[list[str]], str | DocumentWindows],
    max_chunks: int | None = None,
) -> MeasuredText:
    text = HubText(*repo, file, read, cut)
    return MeasuredText(PREFIX + name, text.load, GPTQ_CONTEXT, Scored.FULL, max_chunks, True)


def _c4_windows(documents: list[str]) -> DocumentWindows:
    return DocumentWindows(tuple(documents), GPTQ_WINDOWS)


def _c4_new(documents: list[str]) -> str:
    return " ".join(documents[:_NEW_C4_DOCUMENTS])


_WIKITEXT = ("Salesforce/wikitext", "main")
_WIKITEXT_TEST = "wikitext-2-raw-v1/test-00000-of-00001.parquet"
_C4 = ("allenai/c4", "main")
_C4_VALIDATION = "en/c4-validation.00000-of-00008.json.gz"
_PTB = ("ptb-text-only/ptb_text_only", "refs/convert/parquet")
_PTB_VALIDATION = "penn_treebank/validation/0000.parquet"
_PTB_TEST = "penn_treebank/test/0000.parquet"
_RAW = HubText("ggml-org/ci", "main", "wikitext-2-raw-v1.zip", _wiki_test_raw, "".join)

_TEXTS = (
    _gptq("wikitext-2", _WIKITEXT, _WIKITEXT_TEST, _parquet_column("text"), "\n\n".join),
    MeasuredText(f"{PREFIX}wikitext-2:raw", _RAW.load),
    _gptq("c4", _C4, _C4_VALIDATION, _json_lines, _c4_windows),
    _gptq("c4:new", _C4, _C4_VALIDATION, _json_lines, _c4_new, GPTQ_WINDOWS),
    _gptq("ptb", _PTB, _PTB_VALIDATION, _parquet_column("sentence"), "\n\n".join),
    _gptq("ptb:new", _PTB, _PTB_TEST, _parquet_column("sentence"), " ".join),
)
