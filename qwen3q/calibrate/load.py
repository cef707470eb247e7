"""``--calibration``: from a name to rows of tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3q.calibrate.files import check_file, is_records, read_plain_text, read_records
from qwen3q.calibrate.hub_set import PREFIX, parse_hub_set, stream_hub_set
from qwen3q.calibrate.render import balanced_order, render_calibration
from qwen3q.calibrate.rows import (
    DEFAULT_LENGTH,
    MOST_ROWS,
    TokenRows,
    check_size,
    describe,
    encode,
    spread,
)
from qwen3q.calibrate.samples import Sample
from qwen3q.calibrate.self_sample import SELF
from qwen3q.calibrate.sets import DEFAULT_SET, LICENCE, check_set, load_set, set_names
from qwen3q.models.json_files import read_optional
from qwen3q.models.source import ModelSource
from qwen3q.models.template import ChatTemplate
from qwen3q.models.tokenizer import load_tokenizer, read_chat_template

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """How much of a source is taken, and how.

    Attributes:
        samples: rows; None for all there are, up to ``most``.
        most: rows that are enough.
        length: tokens per row.
        seed: of the order of samples, and of what a model writes itself.
        thinking: one mode only; None for both.
    """

    samples: int | None = None
    most: int = MOST_ROWS
    length: int = DEFAULT_LENGTH
    seed: int = 0
    thinking: bool | None = None


def check_calibration(name: str | None) -> None:
    """Looks whether a source is there, before a model is downloaded to be calibrated with it.

    Args:
        name: as ``load_calibration`` takes it, or ``self``.

    Raises:
        UsageError: no such set or file, or no name of a Hub set.
    """
    name = DEFAULT_SET if name is None else name
    if name.startswith(PREFIX):
        parse_hub_set(name)
    elif _is_file(name):
        check_file(Path(name))
    elif name != SELF:
        check_set(name)


def load_calibration(
    name: str | None,
    source: ModelSource,
    options: CalibrationOptions | None = None,
) -> TokenRows:
    """Calibration tokens of a set, a file or a data set on the Hub.

    Args:
        name: a set (None for the default one); a text, jsonl or parquet file; or ``hub:...``.
            A name that is a set's and a file's is the set's: write ``./name``.
        source: resolved, so that its folder is on disk.

    Raises:
        UsageError: no such source, too few tokens, or data that can't be read.
        ModelError: the model's tokenizer or template is missing or refuses.
        SourceError: the Hub's set can't be read.
        MissingPackageError: parquet and Hub sets need optional packages.
    """
    assert source.folder is not None
    options = options or CalibrationOptions()
    check_size(options.length, options.samples)
    name = DEFAULT_SET if name is None else name
    tokenizer = load_tokenizer(source.folder)
    template = load_template(source.folder)
    licence = None
    if name.startswith(PREFIX):
        samples: Iterable[Sample] = stream_hub_set(parse_hub_set(name), options.seed)
    elif not _is_file(name):
        samples = balanced_order(load_set(name), options.seed)
        licence = LICENCE
    elif not is_records(Path(name)):
        return text_rows(Path(name), tokenizer, options)
    else:
        samples = balanced_order(read_records(Path(name)), options.seed)
    return render_calibration(
        samples,
        tokenizer,
        template,
        name=source_label(name),
        length=options.length,
        rows=options.samples,
        most=options.most,
        thinking=options.thinking,
        seed=options.seed,
        licence=licence,
    )


def text_rows(path: Path, tokenizer: Tokenizer, options: CalibrationOptions) -> TokenRows:
    """A text file tokenized once, special tokens parsed, and cut into rows.

    Raises:
        UsageError: empty, not UTF-8, or too few tokens.
    """
    tokens = encode(tokenizer, read_plain_text(path))
    rows = spread(
        tokens, length=options.length, samples=options.samples, what=str(path), most=options.most
    )
    return TokenRows(rows, describe(path.name, rows))


def source_label(name: str) -> str:
    """What descriptions and metadata call a source: a file by its name alone."""
    return Path(name).name if not name.startswith(PREFIX) and _is_file(name) else name


def _is_file(name: str) -> bool:
    """Whether a name is meant as a file's: one that exists, or that looks like a path; but a
    set's name and ``self`` are what they say."""
    if name == SELF or name in set_names():
        return False
    path = Path(name)
    return path.exists() or bool(path.suffix) or len(path.parts) > 1


def load_template(folder: Path) -> ChatTemplate | None:
    """The chat template of a model folder, if it has one."""
    source = read_chat_template(folder, read_optional(folder / "tokenizer_config.json"))
    return ChatTemplate(source) if source else None
