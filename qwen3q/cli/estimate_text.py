"""Estimates for people. Plain text: rich would take longer to import than a table to compute."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from qwen3q.cli.output import format_bytes, print_lines, stdout_width
from qwen3q.cli.plain_tables import columns, folded_command, folded_lines, table_width
from qwen3q.memory.estimate import Estimate, Verdict
from qwen3q.memory.gpus import MIB, Gpu
from qwen3q.memory.processor import on_processor
from qwen3q.memory.settings import Engine, Settings, native_context
from qwen3q.memory.tables import Row, size_classes, smallest_class

if TYPE_CHECKING:
    from qwen3q.memory.advice import Advice
    from qwen3q.memory.devices import DeviceMemory
    from qwen3q.memory.fit import Fit
    from qwen3q.memory.source import Model

GIB = 1 << 30

_ROWS = {
    Engine.LLAMA_CPP: ("model buffer", "KV buffer", "compute buffer", "driver, scratch"),
    Engine.VLLM: ("model weights", "KV cache needed", "peak activations", "non-torch, graphs"),
    Engine.TRANSFORMERS: ("weights", "KV cache", "prefill, workspace", "CUDA context"),
}
_MARKS = {Verdict.FITS: "+", Verdict.TIGHT: "~", Verdict.NO: "-"}
_NAMES_PER_CLASS = 4


def show_estimate(
    model: Model, found: Estimate, advice: Sequence[Advice], notes: Sequence[str]
) -> None:
    """One run: every part per device, what is left, the longest context, speed, advice."""
    settings = found.settings
    weights = found.weights
    title = f"{model.title}  {weights.format}  {found.engine.value}"
    shape = f"context {settings.context:,}, KV {_kv(settings)}"
    if settings.parallel > 1:
        shape += f", {settings.parallel} sequences"
    lines = ["", *_verdict_lines(found), *_pool_lines(found)]
    if found.verdict is not Verdict.NO:
        lines += _speed_lines(found)
    lines.append(
        f"File: {format_bytes(weights.file_bytes)}, {weights.bits_per_weight:.2f} bits per weight."
    )
    lines += [*found.notes, *notes]
    if advice:
        lines += ["", "To make it fit:"]
        lines += [f"  {a.text}: {a.options}  ({a.total / GIB:.2f} GiB)" for a in advice]
    elif found.verdict is Verdict.NO:
        lines += ["", "No change of cache, context, placement or quantization makes it fit."]
    room = stdout_width()
    head = folded_lines([f"{title}  ({shape})", ""], room)
    print_lines([*head, *_device_table(found, room), *folded_lines(lines, room)])


def show_table(
    model: Model, rows: Sequence[Row], gpus: Sequence[Gpu], notes: Sequence[str]
) -> None:
    """Every quantization at several contexts."""
    room = stdout_width()
    contexts = [run.settings.context for run in rows[0].estimates]
    count = rows[0].estimates[0].settings.parallel
    sequences = "one sequence" if count == 1 else f"{count} sequences"
    memory = "memory" if on_processor(gpus) else "GPU memory"
    title = f"{model.title}: GiB of {memory}, context and all, {sequences}"
    if gpus:
        title += f", on {gpu_names(gpus)} (+ fits, ~ just, - does not)"
    lines = []
    if not gpus:
        lines.append("(n): the smallest card, in GB, that holds it by itself:")
        lines += _size_lines(model, rows)
    spread = max(run.uncertainty for row in rows for run in row.estimates)
    lines.append(f"Uncertainty: up to {spread / GIB:.2f} GiB; --quant shows one run's parts.")
    beyond = [c for c in contexts if c > native_context(model.config)]
    if beyond:
        lines.append(f"Contexts from {_tokens(beyond[0])} on need YaRN.")
    print_lines(
        [
            *folded_lines([title, ""], room),
            *_format_table(model, rows, known=bool(gpus), room=room),
            *folded_lines(["", *lines, *notes], room),
        ]
    )


def _format_table(model: Model, rows: Sequence[Row], *, known: bool, room: int | None) -> list[str]:
    """A line for each quantization; on a narrow terminal engines become headings over theirs.

    Args:
        known: that it is known what the runs are on, so there is a longest context.
    """
    contexts = [_tokens(run.settings.context) for run in rows[0].estimates]
    more = ["longest", "tok/s"] if known else []
    wide = [["quantization", "engine", "bits", "file", *contexts, *more]]
    narrow = [["quantization", "bits", "GB", *contexts, *more]]
    for engine, group in groupby(rows, key=lambda row: row.estimates[0].engine):
        narrow.append([engine.value])
        for row in group:
            fmt, bits = row.weights.format, f"{row.weights.bits_per_weight:.2f}"
            size = row.weights.file_bytes
            marks = [_mark(model, run) for run in row.estimates]
            totals = [run.total / GIB for run in row.estimates]
            runs = [f"{total:.2f} {mark}" for total, mark in zip(totals, marks, strict=True)]
            tail = _longest_and_speed(row.estimates[0]) if known else []
            wide.append([fmt, engine.value, bits, format_bytes(size), *runs, *tail])
            runs = [f"{_short(total)} {mark}" for total, mark in zip(totals, marks, strict=True)]
            narrow.append([fmt, bits, _short(size / 1e9), *runs, *tail])
    return columns(wide if room is None or table_width(wide) <= room else narrow, room)


def _mark(model: Model, run: Estimate) -> str:
    """Whether a run fits, or the smallest card that holds it."""
    if run.verdict is not None:
        return _MARKS[run.verdict]
    return f"({smallest_class(model, run) or '-'})"


def _longest_and_speed(run: Estimate) -> list[str]:
    if not run.max_context:
        return ["-", "-"]
    return [f"{run.max_context:,}", f"{run.speed.decode:.0f}" if run.speed else "-"]


def _short(value: float) -> str:
    """Two digits after the point, but of at most five signs where that can be."""
    return f"{value:.2f}" if value < 99.995 else f"{value:.1f}"


def _size_lines(model: Model, rows: Sequence[Row]) -> list[str]:
    """The cards of each size that a table names."""
    classes = size_classes()
    used = {smallest_class(model, run) for row in rows for run in row.estimates} - {None}
    lines = []
    for size in sorted(size for size in classes if size in used):
        names = [gpu.name.removeprefix("GeForce ") for gpu in classes[size]]
        more = f" and {len(names) - _NAMES_PER_CLASS} more" if names[_NAMES_PER_CLASS:] else ""
        lines.append(f"  {size:>3}  {', '.join(names[:_NAMES_PER_CLASS])}{more}")
    return lines


def show_fits(
    fits: Sequence[Fit],
    total: int,
    gpus: Sequence[Gpu],
    settings: Settings,
    notes: Sequence[str],
) -> None:
    """What fits, best first; commands below their lines where the terminal is narrow."""
    room = stdout_width()
    table = [["model", "quantization", "engine", "bits", "GiB", "", "tok/s"]]
    for fit in fits:
        run = fit.estimate
        assert run.verdict is not None
        table.append(
            [
                fit.release.title,
                run.weights.format,
                run.engine.value,
                f"{run.weights.bits_per_weight:.2f}",
                f"{run.total / GIB:.2f}",
                _MARKS[run.verdict],
                f"{run.speed.decode_full:.0f}" if run.speed else "",
            ]
        )
    left = (0, 1, 2, 7)
    commands = ["command", *(fit.command for fit in fits)]
    wide = [[*cells, command] for cells, command in zip(table, commands, strict=True)]
    if room is None or table_width(wide) <= room:
        body = columns(wide, room, left)
    else:
        body = _with_commands(columns(table, room, left, names=2), commands[1:], room)
    title = (
        f"On {gpu_names(gpus)}, context {settings.context:,}: {total} choices fit, best expected "
        f"quality first (+ fits, ~ just)"
    )
    about = (
        "tok/s: decode with the context full. Expected quality is a rule on size and bits, not a "
        "measurement."
    )
    print_lines([*folded_lines([title, ""], room), *body, *folded_lines(["", about, *notes], room)])


def _with_commands(lines: list[str], commands: Sequence[str], room: int) -> list[str]:
    """Each command below its line of the table; below a whole table that has no line for each."""
    folded = [folded_command(command, room, "  ") for command in commands]
    if len(lines) > len(commands) + 1:
        return [*lines, "", *(part for parts in folded for part in parts)]
    head, *rest = lines
    pairs = zip(rest, folded, strict=True)
    return [head, *(part for line, command in pairs for part in (line, *command))]


def _device_table(found: Estimate, room: int | None) -> list[str]:
    devices = found.devices
    head = [""] + [_device_title(device) for device in devices]
    labels = _ROWS[found.engine]
    if devices[0].gpu is not None and on_processor([devices[0].gpu]):
        labels = (*labels[:3], "program, tokenizer")
    parts = zip(
        labels,
        ([d.weights for d in devices], [d.kv for d in devices], [d.compute for d in devices],
         [d.overhead for d in devices]),
        strict=True,
    )  # fmt: skip
    body = [[label, *(_mib(value) for value in values)] for label, values in parts]
    body.append(["total", *(_mib(d.total) for d in devices)])
    body.append(["uncertainty", *(f"±{d.uncertainty / MIB:,.0f}" for d in devices)])
    if any(d.gpu is not None for d in devices):
        body.append(["usable", *(_mib(d.gpu.usable_bytes) if d.gpu else "" for d in devices)])
        body.append(["left", *(_mib(d.left) if d.left is not None else "" for d in devices)])
    return [*columns([head, *body], room), "(MiB)"]


def _device_title(device: DeviceMemory) -> str:
    return f"{device.name} {device.gpu.name}" if device.gpu else device.name


def _verdict_lines(found: Estimate) -> list[str]:
    total = f"{found.total / GIB:.2f} GiB ± {found.uncertainty / GIB:.2f}"
    if found.verdict is None:
        return [f"Needs {total}."]
    words = {
        Verdict.FITS: "It fits",
        Verdict.TIGHT: "It fits, but by less than the uncertainty",
        Verdict.NO: "It does not fit",
    }[found.verdict]
    longest = f" Longest context that fits: {found.max_context:,}." if found.max_context else ""
    if found.max_context == 0:
        longest = " No context fits."
    return [f"{words}: {total}.{longest}"]


def _pool_lines(found: Estimate) -> list[str]:
    if found.pool is None:
        return []
    share = f"{found.settings.utilization:.0%}"
    if found.pool.tokens < found.settings.context:
        return [
            f"vLLM will not start: at {share} of the GPU its cache holds {found.pool.tokens:,} "
            f"tokens, fewer than {found.settings.context:,}."
        ]
    return [
        f"At {share} of each GPU vLLM's cache holds {found.pool.tokens:,} tokens: "
        f"{found.pool.concurrency:.1f} sequences of {found.settings.context:,}."
    ]


def _speed_lines(found: Estimate) -> list[str]:
    speed = found.speed
    if speed is None:
        return []
    text = (
        f"Decode about {speed.decode:.0f} tokens/s, {speed.decode_full:.0f} at "
        f"{found.settings.context:,} (±{speed.band:.0%})"
    )
    if speed.prefill is not None:
        text += f"; prefill about {speed.prefill:,.0f} tokens/s (±40%)"
    return [text + "."]


def _kv(settings: Settings) -> str:
    if settings.type_k == settings.type_v:
        return settings.type_k
    return f"{settings.type_k}/{settings.type_v}"


def gpu_names(gpus: Sequence[Gpu]) -> str:
    """``2x RTX 3090 + RTX 4090``."""
    runs = [(name, len(list(run))) for name, run in groupby(gpu.name for gpu in gpus)]
    return " + ".join(name if count == 1 else f"{count}x {name}" for name, count in runs)


def _mib(nbytes: int) -> str:
    return f"{nbytes / MIB:,.1f}"


def _tokens(context: int) -> str:
    return f"{context // 1024}k" if context % 1024 == 0 else str(context)
