"""A run's figures as rows of the tables that the estimator is held against.

The columns are those of ``eval/truth/measured_speed.csv`` and ``measured_memory.csv``. A row names
the release whose shape the model has, the format and the GPU; never a path or a machine.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3q.errors import UsageError
from qwen3q.evaluate.artefact import Artefact
from qwen3q.files import write_text
from qwen3q.memory.source import find_model
from qwen3q.models.catalog import catalog
from qwen3q.models.config import Qwen3Config

if TYPE_CHECKING:
    from qwen3q.evaluate.speed_run import SpeedRun

SPEED_FILE, MEMORY_FILE = "measured_speed.csv", "measured_memory.csv"
SPEED_COLUMNS = (
    "engine", "version", "model", "quant", "gpu", "n_gpus", "kv_type", "flash_attn", "ubatch",
    "ctx_or_depth", "prompt_test", "prompt_tok_s", "gen_test", "gen_tok_s", "offload", "kind",
    "source", "note",
)  # fmt: skip
MEMORY_COLUMNS = (
    "engine", "version", "model", "quant", "gpu", "n_gpus", "ctx", "batch_seqs", "kv_type",
    "flash_attn", "ubatch_or_max_batched_tokens", "offload", "gpu_mem_util", "weights_gpu_MiB",
    "weights_cpu_MiB", "kv_MiB", "kv_tokens", "compute_gpu_MiB", "compute_host_MiB", "output_MiB",
    "cudagraph_MiB", "total_gpu_MiB", "total_kind", "source", "note",
)  # fmt: skip

_MIB = 1 << 20
_KIND = "qwen3q eval speed"
_NO_GPU = "CPU"

Row = dict[str, str]


def contribute_rows(target: Path, artefact: Artefact, run: SpeedRun) -> list[str]:
    """Adds what ``run`` measured to ``target``, and says in a line where, or why not.

    Args:
        target: a folder, which gets both tables under their own names, or a ``.csv`` file, which
            gets the rows of speed.

    Raises:
        UsageError: a file there has other columns.
        DiskError: it can't be written.
    """
    config = find_model(str(artefact.path)).config
    title = release_title(config)
    if title is None:
        return [f"No release of Qwen3 has the shape of {artefact.name}: no row was contributed."]
    files: dict[Path, tuple[Sequence[str], list[Row]]]
    files = {target: (SPEED_COLUMNS, speed_rows(run, title))}
    if target.suffix != ".csv":
        files = {
            target / SPEED_FILE: (SPEED_COLUMNS, speed_rows(run, title)),
            target / MEMORY_FILE: (MEMORY_COLUMNS, memory_rows(run, title)),
        }
    written = []
    for path, (columns, rows) in files.items():
        if rows:
            _append(path, columns, rows)
            written.append(f"{path}: {len(rows)} row{'s' if len(rows) > 1 else ''} added")
    return written or [f"{artefact.name} ran in an engine that the estimator has no rule for."]


def release_title(config: Qwen3Config) -> str | None:
    """The release of this shape, or None; its length of positions may differ."""
    shape = _shape(config)
    return next((r.title for r in catalog() if _shape(r.config) == shape), None)


def speed_rows(run: SpeedRun, model: str) -> list[Row]:
    """Rows of one sequence from llama.cpp, in ``SPEED_COLUMNS``; the table has no other."""
    out = []
    for row in run.rows:
        if row["engine"] != "llama.cpp" or row["batch"] != 1:
            continue
        prefill = row["phase"] == "prefill"
        test, rate = f"{'pp' if prefill else 'tg'}{row['tokens']}", _number(row)
        # "depth=p" tells the reader that the test began at the depth
        depth = [f"depth=p{row['depth']}"] if row["depth"] else []
        note = [*depth, f"{row['repeats']} repeats, median", f"{run.machine['threads']} threads"]
        out.append(
            _blank(SPEED_COLUMNS)
            | _common(run, row, model)
            | {
                "ubatch": "512",
                "ctx_or_depth": str(row["depth"]),
                "prompt_test" if prefill else "gen_test": test,
                "prompt_tok_s" if prefill else "gen_tok_s": rate,
                "kind": _KIND,
                "note": "; ".join(note),
            }
        )
    return out


def memory_rows(run: SpeedRun, model: str) -> list[Row]:
    """One row in ``MEMORY_COLUMNS`` from llama.cpp's own accounting; none from torch."""
    parts = [row for row in run.memory if row["engine"] == "llama.cpp"]
    if not parts:
        return []
    first = parts[0]
    gpus = [row for row in parts if row["device"] != "CPU"]
    host = [row for row in parts if row["device"] == "CPU"]
    rest = [row["rest_bytes"] for row in gpus]
    total = _sum(gpus, "weights", "kv", "compute") + sum(value or 0 for value in rest)
    known = bool(gpus) and None not in rest
    return [
        _blank(MEMORY_COLUMNS)
        | _common(run, first, model)
        | {
            "ctx": str(first["context"]),
            "batch_seqs": str(first["batch"]),
            "ubatch_or_max_batched_tokens": str(first["ubatch"]),
            "weights_gpu_MiB": _mib(_sum(gpus, "weights")) if gpus else "",
            "weights_cpu_MiB": _mib(_sum(host, "weights")),
            "kv_MiB": _mib(_sum(parts, "kv")),
            "compute_gpu_MiB": _mib(_sum(gpus, "compute")) if gpus else "",
            "compute_host_MiB": _mib(_sum(host, "compute")),
            "total_gpu_MiB": _mib(total) if known else "",
            "total_kind": "NVML, buffers and driver's context" if known else "",
        }
    ]


def _common(run: SpeedRun, row: Mapping[str, Any], model: str) -> Row:
    names = run.machine.get("devices", [])
    layers = run.machine.get("gpu_layers")
    offload = "all" if layers is None else f"{layers} layers"
    return {
        "engine": "llama.cpp",
        "version": str(run.machine["llama_cpp"]),
        "model": model,
        "quant": str(row["format"]).removeprefix("gguf:"),
        "gpu": names[0] if names else _NO_GPU,
        "n_gpus": str(len(names)),
        "kv_type": "f16",
        "flash_attn": "auto",
        "offload": offload if names else "",
        "source": "contributed",
    }


def _append(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    text = StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not before:
        writer.writeheader()
    elif before.splitlines()[0] != ",".join(columns):
        raise UsageError(
            f"{path} has other columns than {path.name} of the estimator.",
            "Give --contribute a new file or folder.",
        )
    writer.writerows(rows)
    gap = "" if not before or before.endswith("\n") else "\n"
    write_text(path, before + gap + text.getvalue())


def _shape(config: Qwen3Config) -> tuple[object, ...]:
    return (
        config.num_hidden_layers, config.hidden_size, config.q_size, config.kv_size,
        config.head_dim, config.intermediate_size, config.vocab_size, config.num_experts,
        config.num_experts_per_tok, config.moe_intermediate_size, config.tie_word_embeddings,
    )  # fmt: skip


def _number(row: Mapping[str, Any]) -> str:
    return f"{row['tokens_per_second']:.2f}"


def _sum(rows: Iterable[Mapping[str, Any]], *parts: str) -> int:
    return sum(int(row[f"{part}_bytes"]) for row in rows for part in parts)


def _mib(nbytes: int) -> str:
    return f"{nbytes / _MIB:.2f}"


def _blank(columns: Sequence[str]) -> Row:
    return dict.fromkeys(columns, "")
