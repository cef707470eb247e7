"""``qwen3q quantize``: plan a model's formats, and write them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from qwen3q.cli.output import JsonFlag, format_bytes, print_json, progress_bar, stdout_console
from qwen3q.plan.plan import Plan

ModelArgument = Annotated[str, typer.Argument(help="Folder, Hub id, alias (qwen3-8b) or demo.")]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
OfflineFlag = Annotated[bool, typer.Option("--offline", help="Use only what is downloaded.")]


def register(app: typer.Typer) -> None:
    app.command("quantize")(quantize)


def quantize(
    model: ModelArgument,
    to: Annotated[
        list[str], typer.Option("--to", help="Format, such as gguf:Q4_K_M. May be repeated.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path(),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; read no weight, write nothing.")
    ] = False,
    yarn: Annotated[
        float | None, typer.Option(help="Extend the context with YaRN by this factor (up to 4).")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(help="llama.cpp importance matrix (GGUF) for gguf: types.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Default: every core.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    revision: RevisionOption = None,
    offline: OfflineFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Turn a model into smaller formats, several at once.

    Each tensor of the model is read once, whatever the number of formats. A file appears under
    its name when it is complete, never before.
    """
    from qwen3q.models.source import describe, resolve
    from qwen3q.plan.gguf_types import FileType
    from qwen3q.plan.targets import parse_target
    from qwen3q.quantize.run import GgufOptions, plan_targets, quantize_gguf

    targets = [parse_target(name) for name in dict.fromkeys(to)]
    options = GgufOptions(yarn, imatrix, threads, force)
    if dry_run:
        source = describe(model, revision=revision, offline=offline)
        plans = plan_targets(source, targets, options)
        print_json({"plans": [plan_json(p) for p in plans]}) if json_output else show_plans(plans)
        return
    file_types = [target for target in targets if isinstance(target, FileType)]
    with progress_bar(quiet=json_output) as progress:
        source = resolve(model, revision=revision, offline=offline, progress=progress)
        artefacts = quantize_gguf(source, file_types, out, options, progress=progress)
    rows = [(artefact.plan, str(artefact.path), artefact.seconds) for artefact in artefacts]
    if json_output:
        print_json({"artefacts": [artefact_json(*row) for row in rows]})
        return
    console = stdout_console()
    for plan, path, seconds in rows:
        size = f"{format_bytes(plan.file_bytes)}, {plan.bits_per_weight:.2f} bits per weight"
        console.print(f"{path}  {size}, {seconds:.1f} s")


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan for scripts; shapes are row-major, bytes exclude padding."""
    return {
        "model": plan.model,
        "format": plan.format,
        "file_bytes": plan.file_bytes,
        "file_bytes_exact": plan.overhead_exact,
        "tensor_bytes": plan.tensor_bytes,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "parameters": plan.parameters,
        "needs_imatrix": bool(plan.needs_imatrix),
        "tensors": [
            {"name": t.name, "type": t.type, "shape": list(t.shape), "bytes": t.nbytes}
            for t in plan.tensors
        ],
    }


def artefact_json(plan: Plan, path: str, seconds: float) -> dict[str, Any]:
    return {
        "model": plan.model,
        "format": plan.format,
        "path": path,
        "file_bytes": plan.file_bytes,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "seconds": round(seconds, 3),
    }


def show_plans(plans: Sequence[Plan]) -> None:
    """One line per format: size, bits per weight, tensor types."""
    from rich.table import Table

    table = Table(title=f"{plans[0].model}, {plans[0].parameters:,} parameters", title_style="bold")
    table.add_column("format")
    table.add_column("file", justify="right")
    table.add_column("bits/weight", justify="right")
    table.add_column("tensors")
    for plan in plans:
        about = "" if plan.overhead_exact else "~"
        types = Counter(tensor.type for tensor in plan.tensors)
        kinds = ", ".join(f"{count} {name}" for name, count in types.most_common())
        if plan.needs_imatrix:
            kinds += " (needs --imatrix)"
        table.add_row(
            plan.format,
            about + format_bytes(plan.file_bytes),
            f"{plan.bits_per_weight:.2f}",
            kinds,
        )
    stdout_console().print(table)
