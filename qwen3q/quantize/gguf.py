"""Writes GGUF files straight from safetensors: every tensor is read once, for all file types.

Rows go in slabs through a pool of threads: widened to float32, quantized by ggml to each wanted
type, and written at their final place. Nothing full-size lies between source and target.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3q.checkpoint.reader import Checkpoint, check_finite
from qwen3q.checkpoint.safetensors import TensorInfo
from qwen3q.checkpoint.writer import sync_folder
from qwen3q.errors import DAMAGED_MODEL, CheckpointError, DiskError, LlamaError, UsageError
from qwen3q.files import partial_path, require_free_space, reserve, sole_writer
from qwen3q.formats.gguf_file import Value, encode_header, encode_metadata
from qwen3q.formats.gguf_metadata import Provenance, check_runs_in_llama, gguf_metadata
from qwen3q.formats.imatrix import ImportanceMatrix
from qwen3q.llama.ggml import bf16_to_f32_rows, f16_to_f32_rows, is_valid, quantize_rows
from qwen3q.models.config import Qwen3Config, read_generation_config
from qwen3q.models.tensors import TensorSpec, parameter_count
from qwen3q.models.tokenizer import read_tokenizer
from qwen3q.plan.gguf import padded, plan_gguf, tensor_type
from qwen3q.plan.gguf_types import GGML_TYPES, FileType, GgmlType
from qwen3q.plan.plan import Plan
from qwen3q.progress import ProgressFn, silent

SLAB_WEIGHTS = 1 << 19
"""Weights a thread takes at a time: 2 MiB as float32, about one core's second-level cache."""
AHEAD_BYTES = 64 << 20
"""Source bytes of tensors begun before the oldest of them is done; keeps every thread busy."""

LARGEST_WEIGHT = float(np.finfo(np.float16).max)
"""F16 holds no more. Scales are float16, too, and of far larger weights ggml makes zeros: what it
sums of their powers overflows. A model has none, unless a bit of it is damaged."""
WIDE_TYPES = ("F32", "BF16")
"""What holds all that a float32 does."""

Importance = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class GgufJob:
    """One file to write: its plan, its metadata and where it goes."""

    plan: Plan
    metadata: Mapping[str, Value]
    target: Path


@dataclass(frozen=True, slots=True)
class _Output:
    """One tensor's place in one open file."""

    file: int
    type: GgmlType
    offset: int


@dataclass(frozen=True, slots=True)
class _Slab:
    """Rows ``[first, last)`` of one checkpoint tensor, and where they go."""

    source: TensorSpec
    first: int
    last: int
    outputs: tuple[_Output, ...]


def gguf_jobs(
    folder: Path,
    config: Qwen3Config,
    provenance: Provenance,
    file_types: Sequence[FileType],
    out: Path,
    *,
    imatrix: ImportanceMatrix | None = None,
) -> list[GgufJob]:
    """Plans one file per type, ``out/TITLE-TYPE.gguf``, exact to the byte; reads no weight.

    Args:
        folder: the model folder, for its tokenizer and generation config.
        config: the folder's config, or that with YaRN added.

    Raises:
        ModelError: a broken tokenizer, or a config that llama.cpp can't run.
    """
    check_runs_in_llama(config)
    tokenizer, generation = read_tokenizer(folder), read_generation_config(folder)
    jobs = []
    for file_type in file_types:
        metadata = gguf_metadata(
            config,
            tokenizer,
            provenance,
            generation,
            parameters=parameter_count(config),
            file_type=file_type.id,
        ) | (imatrix.metadata() if imatrix else {})
        plan = plan_gguf(
            provenance.title,
            config,
            file_type,
            has_imatrix=imatrix is not None,
            metadata_bytes=len(encode_metadata(metadata)),
        )
        jobs.append(GgufJob(plan, metadata, out / gguf_file_name(provenance.title, file_type)))
    return jobs


def gguf_file_name(title: str, file_type: FileType) -> str:
    """``Qwen3-8B-Q4_K_M.gguf``, as the Hub names such files."""
    return f"{title.replace(' ', '-')}-{file_type.name}.gguf"


def write_gguf(
    checkpoint: Checkpoint,
    jobs: Sequence[GgufJob],
    *,
    threads: int,
    imatrix: ImportanceMatrix | None = None,
    replace: bool = False,
    progress: ProgressFn = silent,
) -> float:
    """Writes all ``jobs``, which are plans of the checkpoint's model, in one pass over it.

    Each file is written beside its target and renamed when all are complete; on any failure
    nothing is left.

    Args:
        replace: files that are there already.

    Returns:
        Seconds it took.

    Raises:
        UsageError: a plan needs an importance matrix that was not given.
        CheckpointError: a weight is NaN or Inf.
        DiskError: too little room, or a target that is there, can't be written or is being
            written by another process.
    """
    started = time.perf_counter()
    for job in jobs:
        _require_imatrix(job.plan, imatrix)
    with ExitStack() as stack:
        for job in jobs:
            stack.enter_context(sole_writer(job.target))
            if job.target.exists() and not replace:
                raise DiskError(f"{job.target} exists already.", "Add --force to replace it.")
        require_free_space(jobs[0].target.parent, sum(job.plan.file_bytes for job in jobs))
        files = [stack.enter_context(_open_target(job)) for job in jobs]
        importance = imatrix.values if imatrix else {}
        _quantize_all(checkpoint, _outputs(jobs, files), threads, importance, progress)
        for file in files:
            os.fsync(file)
        for job in jobs:
            os.replace(partial_path(job.target), job.target)
        for folder in {job.target.parent for job in jobs}:
            sync_folder(folder)
    return time.perf_counter() - started


def _require_imatrix(plan: Plan, imatrix: ImportanceMatrix | None) -> None:
    if plan.needs_imatrix and imatrix is None:
        raise UsageError(
            f"{plan.format} needs an importance matrix: {len(plan.needs_imatrix)} tensors such as "
            f"{plan.needs_imatrix[0]} come out broken without one.",
            "Add --calibration balanced, which makes one, or --imatrix FILE; or choose a type that "
            "needs none, such as gguf:Q3_K_S.",
        )


@contextmanager
def _open_target(job: GgufJob) -> Iterator[int]:
    """The file beside the target with its header and full size; removed if the body fails."""
    path = partial_path(job.target)
    try:
        with path.open("w+b") as file:
            header = encoded_header(job)
            reserve(file, len(header) + sum(padded(t.nbytes) for t in job.plan.tensors))
            file.write(header)
            file.flush()
            yield file.fileno()
    except OSError as error:
        raise DiskError(f"Can't write {job.target}: {error.strerror}.") from None
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def encoded_header(job: GgufJob) -> bytes:
    """All that stands before the first tensor's data."""
    offset, entries = 0, []
    for tensor in job.plan.tensors:
        entries.append((tensor.name, tensor_type(tensor), tensor.shape, offset))
        offset += padded(tensor.nbytes)
    return encode_header(encode_metadata(job.metadata), len(job.metadata), entries)


def _outputs(
    jobs: Sequence[GgufJob], files: Sequence[int]
) -> Iterator[tuple[TensorSpec, tuple[_Output, ...]]]:
    """Every checkpoint tensor in file order, with the place of its first row in each file."""
    positions = [
        job.plan.file_bytes - sum(padded(t.nbytes) for t in job.plan.tensors) for job in jobs
    ]
    for tensors in zip(*(job.plan.tensors for job in jobs), strict=True):
        for i, source in enumerate(tensors[0].sources):
            yield (
                source,
                tuple(
                    _Output(file, GGML_TYPES[t.type], position + i * t.nbytes // len(t.sources))
                    for file, t, position in zip(files, tensors, positions, strict=True)
                ),
            )
        positions = [
            position + padded(t.nbytes) for t, position in zip(tensors, positions, strict=True)
        ]


def _quantize_all(
    checkpoint: Checkpoint,
    work: Iterator[tuple[TensorSpec, tuple[_Output, ...]]],
    threads: int,
    importance: Importance,
    progress: ProgressFn,
) -> None:
    """Feeds slabs to the pool, some tensors ahead, and gives finished tensors' memory back."""
    total = sum(info.nbytes for info in checkpoint.tensors.values())
    done = ahead = 0
    buffers = threading.local()
    pending: deque[tuple[str, list[Future[None]]]] = deque()

    def finish_oldest() -> None:
        nonlocal done, ahead
        name, futures = pending.popleft()
        for future in futures:
            future.result()
        checkpoint.release(name)
        done += checkpoint.tensors[name].nbytes
        ahead -= checkpoint.tensors[name].nbytes
        progress(done, total, "quantize")

    with ThreadPoolExecutor(threads) as pool:
        try:
            for source, outputs in work:
                futures = [
                    pool.submit(_quantize_slab, checkpoint, slab, importance, buffers)
                    for slab in _slabs(source, outputs)
                ]
                pending.append((source.name, futures))
                ahead += checkpoint.tensors[source.name].nbytes
                while ahead > AHEAD_BYTES and len(pending) > 1:
                    finish_oldest()
            while pending:
                finish_oldest()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _slabs(source: TensorSpec, outputs: tuple[_Output, ...]) -> Iterator[_Slab]:
    columns = source.shape[-1]
    rows = source.numel // columns
    step = max(1, SLAB_WEIGHTS // columns)
    for first in range(0, rows, step):
        yield _Slab(source, first, min(first + step, rows), outputs)


def _quantize_slab(
    checkpoint: Checkpoint, slab: _Slab, importance: Importance, buffers: threading.local
) -> None:
    name, columns = slab.source.name, slab.source.shape[-1]
    weights = checkpoint.array(name).reshape(-1, columns)[slab.first : slab.last]
    wide = _float32(checkpoint.tensors[name], weights, buffers)
    largest = max(float(wide.max()), -float(wide.min()))
    if not math.isfinite(largest):
        check_finite(name, wide, "F32", checkpoint.tensors[name].path)
    for output in slab.outputs:
        if largest > LARGEST_WEIGHT and output.type.name not in WIDE_TYPES:
            raise CheckpointError(
                f"{name} has weights too large for {output.type.name}: {largest:.3g}.",
                DAMAGED_MODEL,
            )
        row_bytes = output.type.row_bytes(columns)
        out = _buffer(buffers, "out", len(wide) * row_bytes, np.uint8).reshape(len(wide), row_bytes)
        imatrix = importance.get(name) if output.type.is_quantized else None
        quantize_rows(wide, output.type, imatrix=imatrix, out=out)
        if output.type.is_quantized and not is_valid(out, output.type):
            raise LlamaError(
                f"{name} has weights too large for {output.type.name}: a block's scale overflows."
            )
        _write(output.file, out, output.offset + slab.first * row_bytes)


def _float32(
    info: TensorInfo, weights: NDArray[Any], buffers: threading.local
) -> NDArray[np.float32]:
    """The weights as float32, in the thread's buffer unless they are float32."""
    dtype = info.dtype
    if dtype == "F32":
        wide: NDArray[np.float32] = weights
    else:
        wide = _buffer(buffers, "wide", weights.size, np.float32).reshape(weights.shape)
        if dtype == "BF16":
            bf16_to_f32_rows(weights, out=wide)
        elif dtype == "F16":
            f16_to_f32_rows(weights, out=wide)
        else:
            raise CheckpointError(
                f"{info.name} is stored as {dtype}; GGUF is written from BF16, F16 or F32 weights.",
                "Start from the unquantized release of this model.",
            )
    return wide


def _buffer(buffers: threading.local, key: str, size: int, dtype: Any) -> NDArray[Any]:
    """A flat array of the calling thread that grows as needed and is reused."""
    held = getattr(buffers, key, None)
    if held is None or held.size < size:
        held = np.empty(size, dtype)
        setattr(buffers, key, held)
    return held[:size]


def _write(file: int, data: NDArray[np.uint8], offset: int) -> None:
    view = data.data.cast("B")
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
