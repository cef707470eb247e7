"""Calibration text from a data set on the Hugging Face Hub, ``hub:ORG/NAME``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from qwen3q.calibrate.samples import Sample, parse_record
from qwen3q.errors import MissingPackageError, SourceError, UsageError

PREFIX = "hub:"
SHUFFLE_RECORDS = 2000
"""Records that the stream is shuffled within."""
MOST_RECORDS = 20_000


@dataclass(frozen=True, slots=True)
class HubSet:
    """A data set's address.

    Attributes:
        config: the set's own default if None.
        column: None for the first that holds text or conversations.
    """

    repo: str
    config: str | None = None
    split: str = "train"
    column: str | None = None


def parse_hub_set(name: str) -> HubSet:
    """Reads ``hub:ORG/NAME[:CONFIG][:SPLIT][:COLUMN]``; a part left empty has its default.

    Raises:
        UsageError: no repository, or too many parts.
    """
    repo, *parts = name.removeprefix(PREFIX).split(":")
    if not repo.strip("/") or len(parts) > 3:
        raise UsageError(
            f"{name!r} is no data set.", "Write hub:ORG/NAME, or hub:ORG/NAME:CONFIG:SPLIT:COLUMN."
        )
    config, split, column = (*parts, "", "", "")[:3]
    return HubSet(repo, config or None, split or "train", column or None)


def stream_hub_set(hub: HubSet, seed: int) -> Iterator[Sample]:
    """Samples of a data set in shuffled order, downloaded as they are asked for.

    Raises:
        MissingPackageError: needs ``datasets``.
        SourceError: no such set, config or split, or the Hub can't be reached.
        UsageError: a column that is not there or holds no text.
    """
    try:
        import datasets
    except ImportError:
        raise MissingPackageError(
            f"hub:{hub.repo} needs the package datasets.", "pip install datasets"
        ) from None
    datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False
    loggers = [logging.getLogger(library) for library in ("huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:  # they tell of every attempt
        logger.setLevel(logging.ERROR)
    try:
        stream = datasets.load_dataset(hub.repo, hub.config, split=hub.split, streaming=True)
        records = stream.shuffle(seed=seed, buffer_size=SHUFFLE_RECORDS)
        for number, record in enumerate(islice(records, MOST_RECORDS), 1):
            yield parse_record(record, f"{hub.repo} record {number}", hub.column)
    except UsageError:
        raise
    except Exception as error:  # datasets raises its readers' and the network's own errors
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise SourceError(
            f"The data set {hub.repo} can't be read: {reason[0].rstrip('.')}.",
            "Sets are named hub:ORG/NAME; --calibration balanced and files need no network.",
        ) from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
