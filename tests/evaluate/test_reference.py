"""Stored logits: what comes back, and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from qwen3q.errors import CheckpointError, UsageError
from qwen3q.evaluate.backends import LogitRows
from qwen3q.evaluate.fidelity import log_softmax_rows
from qwen3q.evaluate.reference import ReferenceKey, ReferenceLogits, write_reference

KEY = ReferenceKey(
    model="m",
    tokenizer="t",
    text="x",
    chunks=3,
    context=200,
    first=100,
    vocab_size=9000,
    parse_special=False,
)


@pytest.fixture
def stored(tmp_path):
    """A file, the logits it was made of, and the tokens; pieces do not fit the blocks."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (KEY.rows, KEY.vocab_size)).astype(np.float32)
    logits[5] = 1.0
    chunks = rng.integers(0, KEY.vocab_size, (KEY.chunks, KEY.context)).astype(np.int32)
    pieces = (LogitRows(start, logits[start : start + 70]) for start in range(0, KEY.rows, 70))
    path = tmp_path / "reference.logits"
    with ThreadPoolExecutor(2) as pool:
        write_reference(path, KEY, chunks, pieces, pool)
    return path, logits, chunks


def test_rows_come_back(stored):
    path, logits, chunks = stored
    expected = log_softmax_rows(logits)
    with ReferenceLogits(path) as reference:
        assert reference.key == KEY
        assert (reference.chunks == chunks).all()
        targets = chunks[:, KEY.first + 1 :].ravel()
        assert (reference.targets == targets).all()
        np.testing.assert_array_equal(reference.nll, -expected[np.arange(KEY.rows), targets])
        for start, stop in ((0, KEY.rows), (17, 33), (60, 61)):
            spans = list(reference.spans(start, stop))
            got = np.concatenate([reference.log_probabilities(rows) for rows in spans])
            wanted = expected[start:stop]
            likely = wanted > -9
            assert np.abs(got - wanted)[likely].max() < 2e-4
            kept = wanted > wanted.max(axis=1, keepdims=True) - 15.9
            unlikely = kept & ~likely
            assert (np.exp(wanted) * (got - wanted) ** 2)[unlikely].max() < 1e-11


def test_the_stored_precision_adds_no_divergence(stored):
    path, logits, _ = stored
    expected = log_softmax_rows(logits).astype(np.float64)
    with ReferenceLogits(path) as reference:
        got = np.concatenate(
            [reference.log_probabilities(rows) for rows in reference.spans(0, KEY.rows)]
        )
    got = got.astype(np.float64)
    divergence = np.where(got > -16, np.exp(got) * (got - expected), 0).sum(axis=1)
    assert abs(divergence.mean()) < 1e-6


@pytest.mark.parametrize(("spread", "most"), [(1.0, 2.02), (3.0, 2.02), (12.0, 1.2)])
def test_room_for_a_token(tmp_path, spread, most):
    """16 bits each, and much less where most tokens are unlikely."""
    rng = np.random.default_rng(2)
    logits = rng.normal(0, spread, (KEY.rows, KEY.vocab_size)).astype(np.float32)
    path = tmp_path / "reference.logits"
    chunks = np.zeros((KEY.chunks, KEY.context), np.int32)
    with ThreadPoolExecutor(2) as pool:
        write_reference(path, KEY, chunks, iter([LogitRows(0, logits)]), pool)
    assert path.stat().st_size < most * logits.size
    with ReferenceLogits(path) as reference:
        got = reference.log_probabilities(slice(1, 3))
    wanted = log_softmax_rows(logits[1:3])
    likely = wanted > -9
    assert np.abs(got - wanted)[likely].max() < 2e-4


@pytest.mark.parametrize(
    "change", [{"text": "other"}, {"tokenizer": "other"}, {"model": "other"}, {"context": 128}]
)
def test_another_measurement_is_refused(stored, change):
    with ReferenceLogits(stored[0]) as reference:
        reference.require(KEY)
        with pytest.raises(UsageError, match=next(iter(change))):
            reference.require(replace(KEY, **change))


def damaged(path, change) -> None:
    data = bytearray(path.read_bytes())
    data = change(data)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d[:9],
        lambda d: b"X" + d[1:],
        lambda d: d[:-1],
        lambda d: d[: len(d) // 2],
        lambda d: d[:8] + b"\xff\xff\xff\xff" + d[12:],
        lambda d: d.replace(b'"chunks": 3', b'"chunks": 9', 1),
        lambda d: d.replace(b'"chunks": 3', b'"chunks":-3', 1),
        lambda d: d.replace(b'"vocab_size": 9000', b'"vocab_size": 9999', 1),
        lambda d: d.replace(b'"version": 3', b'"version": 2', 1),
        lambda d: d.replace(b'"model"', b'"mode1"', 1),
        lambda d: d[: d.index(b"}") + 4] + b"\x7f" + d[d.index(b"}") + 5 :],
    ],
)
def test_a_broken_file_is_refused_before_anything_is_allocated(stored, change):
    path = stored[0]
    damaged(path, change)
    with pytest.raises(CheckpointError, match=r"reference\.logits"), ReferenceLogits(path) as r:
        r.log_probabilities(slice(0, 1))


@pytest.mark.parametrize("spread", [3.0, 12.0])
def test_a_damaged_block_is_refused(tmp_path, spread):
    """Plain and deflated."""
    logits = np.random.default_rng(3).normal(0, spread, (KEY.rows, KEY.vocab_size))
    path = tmp_path / "reference.logits"
    chunks = np.zeros((KEY.chunks, KEY.context), np.int32)
    with ThreadPoolExecutor(1) as pool:
        pieces = iter([LogitRows(0, logits.astype(np.float32))])
        write_reference(path, KEY, chunks, pieces, pool)
    damaged(path, lambda data: data[:-20000] + bytes(20000))
    with ReferenceLogits(path) as reference:
        last = list(reference.spans(0, KEY.rows))[-1]
        with pytest.raises(CheckpointError, match="damaged"):
            reference.log_probabilities(last)


def read_all(path) -> None:
    with ReferenceLogits(path) as reference:
        for rows in reference.spans(0, KEY.rows):
            reference.log_probabilities(rows)


def test_one_flipped_bit_anywhere_is_noticed(stored):
    path = stored[0]
    whole = path.read_bytes()
    header = 12 + int.from_bytes(whole[8:12], "little")
    for at in np.linspace(header, len(whole) - 1, 60).astype(int):
        damaged(path, lambda data, at=at: data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(CheckpointError, match="damaged"):
            read_all(path)
        path.write_bytes(whole)
    read_all(path)


def test_nothing_is_left_when_the_model_fails(tmp_path):
    def failing():
        yield LogitRows(0, np.zeros((40, KEY.vocab_size), np.float32))
        raise RuntimeError("out of memory")

    chunks = np.zeros((KEY.chunks, KEY.context), np.int32)
    path = tmp_path / "reference.logits"
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError):
        write_reference(path, KEY, chunks, failing(), pool)
    assert list(tmp_path.iterdir()) == []
