"""Log-probabilities of the float reference, computed once and kept in one compressed file.

Each scored position holds 16 bits per vocabulary entry between the largest log-probability and
16 nats below it, as llama-perplexity stores them. The less likely a token is, the fewer of the
low bits are kept: the error this adds to a divergence stays below 1e-6 nats. High and low bytes
are deflated apart, in blocks that are read in any order; a block that hardly shrinks lies there
as plain uint16, which are read ten times as fast.

Layout: magic, u32 length of a JSON header, the header, int32 tokens, per-row arrays, u64 offsets
of the blocks, the CRC-32 of each block and of all arrays before, the blocks. All little-endian.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3q.closing import Closing
from qwen3q.errors import CheckpointError, UsageError
from qwen3q.evaluate.backends import LogitRows
from qwen3q.evaluate.fidelity import Floats, log_softmax_rows
from qwen3q.files import written_whole

MAGIC = b"Q3QLOGIT"
VERSION = 3
RANGE = 16.0
"""Nats below the most likely token that are told apart."""

_BLOCK_ELEMENTS = 1 << 18
_WORTH_DEFLATING = 0.75
"""Of a block's bytes, if deflated it has fewer; so a block of all its bytes is plain."""
_LOWEST_TOP = 65280
"""The largest code of a row is 65535, of which up to 8 low bits are dropped."""

_ROOM_FOR_SECONDS = 32
"""Bytes of the header that stay free until it is known how long the model took."""

_FINE_NATS = 9.0
"""Log-probabilities above minus this keep all 16 bits."""

_MAX_HEADER = 1 << 20
_MAX_ROWS = 1 << 28
_MAX_VOCABULARY = 1 << 22


@dataclass(frozen=True, slots=True)
class ReferenceKey:
    """What stored logits depend on; they serve only a measurement with the same key.

    Attributes:
        model: sha256 over the reference's name, bytes and backend.
        tokenizer: hash of vocabulary and merges.
        text: sha256 of the text's UTF-8.
        chunks, context, first: chunks, tokens in each, and the first scored position.
        parse_special: whether markup in the text was read as tokens.
    """

    model: str
    tokenizer: str
    text: str
    chunks: int
    context: int
    first: int
    vocab_size: int
    parse_special: bool

    @property
    def rows_per_chunk(self) -> int:
        return self.context - 1 - self.first

    @property
    def rows(self) -> int:
        return self.chunks * self.rows_per_chunk

    @property
    def most_bytes(self) -> int:
        """Of their logits, if none could be deflated."""
        return 2 * self.rows * self.vocab_size

    @property
    def block_rows(self) -> int:
        return max(1, _BLOCK_ELEMENTS // self.vocab_size)

    @property
    def blocks(self) -> int:
        return -(-self.rows // self.block_rows)


_CHECKSUM = np.dtype("<u4")
_PER_ROW = np.dtype([("scale", "<f4"), ("low", "<f4"), ("top", "<i4"), ("nll", "<f8")])


class ReferenceLogits(Closing):
    """A stored reference, mapped. Close it, or use it in a ``with``.

    Attributes:
        backend: what ran the model; empty in files that do not tell.
        seconds: that it took; None in files that do not tell.
    """

    def __init__(self, path: Path) -> None:
        """Opens ``path`` and validates its header.

        Raises:
            CheckpointError: no such file, broken, or of another version.
        """
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            raise CheckpointError(f"Can't read reference logits from {path}.") from None
        self.path = path
        self.key, self.backend, self.seconds, start = _read_header(path, self._map)
        shapes = (
            (np.dtype("<i4"), self.key.chunks * self.key.context),
            (_PER_ROW, self.key.rows),
            (np.dtype("<u8"), self.key.blocks + 1),
            (_CHECKSUM, self.key.blocks + 1),
        )
        if start + sum(dtype.itemsize * count for dtype, count in shapes) > len(self._map):
            raise _broken(path, "it is shorter than its header says")
        arrays: list[NDArray[Any]] = []
        for dtype, count in shapes:
            arrays.append(np.frombuffer(self._map, dtype, count, start).copy())
            start += dtype.itemsize * count
        tokens, self._rows, self._offsets, self._checksums = arrays
        self.chunks: NDArray[np.int32] = tokens.reshape(self.key.chunks, self.key.context)
        self._start = start
        if zlib.crc32(b"".join(array.tobytes() for array in arrays[:3])) != self._checksums[-1]:
            raise _broken(path, "its tables are damaged")
        ends = self._offsets.astype(np.int64)
        if ends[0] != 0 or (np.diff(ends) < 0).any() or start + ends[-1] != len(self._map):
            raise _broken(path, "its block offsets make no sense")
        named = np.concatenate((tokens, self._rows["top"]))
        if named.min() < 0 or named.max() >= self.key.vocab_size:
            raise _broken(path, "it names tokens outside its vocabulary")

    @property
    def nll(self) -> Floats:
        """The reference's negative log-likelihood of each row's next token."""
        return np.asarray(self._rows["nll"], np.float64)

    @property
    def top(self) -> NDArray[np.int32]:
        """The reference's most likely token of each row."""
        return np.asarray(self._rows["top"], np.int32)

    @property
    def targets(self) -> NDArray[np.int32]:
        """The text's next token of each row."""
        return self.chunks[:, self.key.first + 1 :].ravel()

    @property
    def nbytes(self) -> int:
        return len(self._map)

    def spans(self, start: int, stop: int) -> Iterator[slice]:
        """Rows ``start .. stop`` cut at the blocks' borders."""
        while start < stop:
            end = min(stop, (start // self.key.block_rows + 1) * self.key.block_rows)
            yield slice(start, end)
            start = end

    def log_probabilities(
        self, rows: slice, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Rows of one block, float32 ``[rows, vocabulary]``.

        Args:
            out: where to write them, with room for as many rows or more.

        Raises:
            CheckpointError: the block is damaged.
        """
        block, skip = divmod(rows.start, self.key.block_rows)
        count = rows.stop - rows.start
        codes = np.empty((count, self.key.vocab_size), np.float32) if out is None else out[:count]
        sound = self._read_codes(block, slice(skip, skip + count), codes)
        scale = self._rows["scale"][rows]
        least = np.where(scale > 0, _LOWEST_TOP, 0)
        if not sound or (codes[np.arange(count), self._rows["top"][rows]] < least).any():
            raise _broken(self.path, f"block {block} is damaged")
        codes *= scale[:, None]
        codes += self._rows["low"][rows, None]
        return codes

    def _read_codes(self, block: int, rows: slice, out: NDArray[np.float32]) -> bool:
        """Writes what is stored for some of a block's rows; False if they can't be read."""
        vocabulary = self.key.vocab_size
        count = min(self.key.block_rows, self.key.rows - block * self.key.block_rows)
        begin, end = (self._start + int(o) for o in self._offsets[block : block + 2])
        nbytes = 2 * count * vocabulary
        stored = memoryview(self._map)[begin:end]
        if zlib.crc32(stored) != self._checksums[block]:
            return False
        if len(stored) == nbytes:
            out[:] = np.frombuffer(stored, "<u2").reshape(count, vocabulary)[rows]
            return True
        try:
            raw = zlib.decompressobj().decompress(stored, nbytes + 1)
        except zlib.error:
            return False
        if len(raw) != nbytes:
            return False
        high, low = np.frombuffer(raw, np.uint8).reshape(2, count, vocabulary)[:, rows]
        np.multiply(high, 256, out=out, dtype=np.float32)
        out += low
        return True

    def require(self, key: ReferenceKey) -> None:
        """Refuses to serve another measurement.

        Raises:
            UsageError: names what differs.
        """
        ours, theirs = asdict(self.key), asdict(key)
        differing = [
            f"{name.replace('_', ' ')} {_short(ours[name])}, not {_short(theirs[name])}"
            for name in ours
            if ours[name] != theirs[name]
        ]
        if differing:
            raise UsageError(
                f"{self.path} holds other reference logits: {'; '.join(differing)}.",
                "Remove it to compute them again, or choose another --out.",
            )

    def close(self) -> None:
        self._map.close()


def _short(value: object) -> str:
    """A hash by its beginning."""
    text = str(value)
    return text if len(text) <= 32 else f"{text[:12]}…"


def write_reference(
    path: Path,
    key: ReferenceKey,
    chunks: NDArray[np.int32],
    logits: Iterator[LogitRows],
    pool: ThreadPoolExecutor,
    backend: Mapping[str, Any] | None = None,
    started: float | None = None,
) -> None:
    """Stores the reference; the file appears when it is complete.

    Args:
        backend: what runs the model, as plain data; None to tell nothing.
        started: when that began, by ``perf_counter``; None for now.

    Raises:
        DiskError: it can't be written.
    """
    started = perf_counter() if started is None else started
    facts = {"version": VERSION, "backend": dict(backend or {}), **asdict(key)}
    head = json.dumps(facts).encode() + _ROOM_FOR_SECONDS * b" "
    rows = np.zeros(key.rows, _PER_ROW)
    offsets, checksums = np.zeros(key.blocks + 1, "<u8"), np.zeros(key.blocks + 1, _CHECKSUM)
    targets = chunks[:, key.first + 1 :].ravel()
    with written_whole(path) as partial, partial.open("wb") as file:
        file.write(MAGIC + struct.pack("<I", len(head)) + head)
        tokens = np.ascontiguousarray(chunks, "<i4").tobytes()
        file.write(tokens)
        tables = file.tell()
        file.seek(tables + rows.nbytes + offsets.nbytes + checksums.nbytes)
        encoded = _encoded(pool, _blocks(logits, key.block_rows), rows, targets)
        for block, data in enumerate(encoded):
            file.write(data)
            offsets[block + 1] = offsets[block] + len(data)
            checksums[block] = zlib.crc32(data)
        file.seek(tables)
        written = rows.tobytes() + offsets.tobytes()
        checksums[-1] = zlib.crc32(tokens + written)
        file.write(written + checksums.tobytes())
        facts["seconds"] = round(perf_counter() - started, 3)
        file.seek(len(MAGIC) + 4)
        file.write(json.dumps(facts).encode().ljust(len(head)))
        file.flush()
        os.fsync(file.fileno())


def _encoded(
    pool: ThreadPoolExecutor,
    blocks: Iterator[list[LogitRows]],
    rows: NDArray[Any],
    targets: NDArray[np.int32],
) -> Iterator[bytes]:
    """Encodes blocks side by side and gives them in order."""
    for group in blocks:
        yield from pool.map(lambda block: _encode(block, rows, targets), group)


def _blocks(logits: Iterator[LogitRows], block_rows: int) -> Iterator[list[LogitRows]]:
    """Cuts logits into blocks of exactly ``block_rows`` (the last may be shorter), by group.

    A group's blocks are used up before the next logits are computed, which overwrite them.
    """
    rest: NDArray[np.float32] | None = None
    start = 0
    for piece in logits:
        values = piece.values if rest is None else np.concatenate((rest, piece.values))
        whole = len(values) // block_rows * block_rows
        yield [
            LogitRows(start + at, values[at : at + block_rows])
            for at in range(0, whole, block_rows)
        ]
        start += whole
        rest = values[whole:].copy() if whole < len(values) else None
    if rest is not None:
        yield [LogitRows(start, rest)]


def _encode(block: LogitRows, rows: NDArray[Any], targets: NDArray[np.int32]) -> bytes:
    """Fills the block's entries of ``rows`` and returns it as it is stored."""
    here = slice(block.start, block.start + len(block.values))
    log_probabilities = log_softmax_rows(block.values)
    top = log_probabilities.argmax(axis=1)
    count = np.arange(len(top))
    rows["top"][here] = top
    rows["nll"][here] = -log_probabilities[count, targets[here]].astype(np.float64)
    highest = log_probabilities[count, top]
    low = np.maximum(log_probabilities.min(axis=1), highest - RANGE)
    scale = (highest - low) / 65535
    rows["low"][here], rows["scale"][here] = low, scale
    # the error of a divergence grows with probability times step squared
    bits = ((-log_probabilities - _FINE_NATS) / (2 * np.log(2))).clip(0, 8).astype(np.int32)
    steps = np.where(scale > 0, scale, 1)[:, None] * (1 << bits).astype(np.float32)
    codes = np.rint((log_probabilities - low[:, None]).clip(0) / steps).astype(np.int32) << bits
    codes = codes.clip(max=65535).astype("<u2")
    deflated = zlib.compress(np.stack((codes >> 8, codes & 255)).astype(np.uint8).tobytes(), 1)
    return deflated if len(deflated) < _WORTH_DEFLATING * codes.nbytes else codes.tobytes()


def _read_header(
    path: Path, data: mmap.mmap
) -> tuple[ReferenceKey, dict[str, Any], float | None, int]:
    """The key, every count checked, what ran the model, how long, and where the header ends."""
    if len(data) < 12 or data[:8] != MAGIC:
        raise CheckpointError(f"{path} holds no reference logits.")
    (length,) = struct.unpack("<I", data[8:12])
    if length > min(_MAX_HEADER, len(data) - 12):
        raise _broken(path, "its header does not fit into it")
    try:
        fields = dict(json.loads(data[12 : 12 + length]))
        version, backend = fields.pop("version"), dict(fields.pop("backend", {}))
        seconds = float(fields.pop("seconds")) if "seconds" in fields else None
        key = ReferenceKey(**fields)
        numbers = (key.chunks, key.context, key.first, key.vocab_size)
        sound = all(type(n) is int for n in numbers) and 0 <= key.first < key.context - 1
        sound = sound and key.chunks > 0 and 0 < key.vocab_size <= _MAX_VOCABULARY
        sound = sound and key.chunks * key.context <= _MAX_ROWS
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _broken(path, "its header makes no sense") from None
    if version != VERSION or not sound:
        raise _broken(path, f"its header (version {version}) is not one this release writes")
    return key, backend, seconds, 12 + length


def _broken(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} can't be used: {why}.", "Remove it; the reference logits are computed again."
    )
