"""``qwen3q quantize``: plan a model's formats, and write them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3q.cli.options import CoresOption, OfflineFlag, RevisionOption
from qwen3q.cli.output import JsonFlag, format_bytes, print_json, progress_bar, stdout_console
from qwen3q.cli.quantize_text import (
    job_json,
    legality_of,
    memory_json,
    show_job,
    show_measured,
)
from qwen3q.plan.plan import Plan

if TYPE_CHECKING:
    from qwen3q.quantize.artefacts import Artefact

ModelArgument = Annotated[str, typer.Argument(help="Folder, Hub id, alias (qwen3-8b) or demo.")]
Formats = Annotated[
    list[str] | None,
    typer.Option("--to", help="Format: gguf:Q4_K_M, gptq:int4, awq:int4, int8, ... Repeatable."),
]
Panel = "Formats with calibration (torch)"


def register(app: typer.Typer) -> None:
    app.command("quantize")(quantize)


def quantize(
    model: ModelArgument,
    to: Formats = None,
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path(),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; read no weight, write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what exists.")] = False,
    yarn: Annotated[
        float | None, typer.Option(help="GGUF: extend the context with YaRN, up to 4 times.")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(help="GGUF: importance matrix of llama-imatrix, .gguf or .dat.")
    ] = None,
    threads: CoresOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="balanced, quality, fast, moe, tiny-gpu, every-format, mixed, or a YAML file: "
            "formats, text and options in one.",
            rich_help_panel=Panel,
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="A set (default: balanced), a text, jsonl or parquet file, hub:ORG/NAME, or self: "
            "what the model says.",
            show_default=False,
            rich_help_panel=Panel,
        ),
    ] = None,
    calibration_samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rows of text. Default: as many as the model's width can make use of.",
            show_default=False,
            rich_help_panel=Panel,
        ),
    ] = None,
    calibration_length: Annotated[
        int | None,
        typer.Option(
            min=16,
            help="Tokens per row. Default: 512, or the recipe's.",
            show_default=False,
            rich_help_panel=Panel,
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(
            help="32, 64, 128, or -1 for one scale per output. Default: the format's.",
            show_default=False,
            rich_help_panel=Panel,
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            help="2, 3, 4 or 8, as the format has them. Default: the format's.",
            show_default=False,
            rich_help_panel=Panel,
        ),
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option(
            "--sym/--asym",
            help="The zero in the middle of the codes, or where a group needs it. Default: the "
            "format's.",
            show_default=False,
            rich_help_panel=Panel,
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="cpu, cuda, cuda:1, mps. Repeatable.", rich_help_panel=Panel),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue a run that was cut; what is done already is left alone.",
            rich_help_panel=Panel,
        ),
    ] = False,
    revision: RevisionOption = None,
    offline: OfflineFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Turn a model into smaller formats, several at once, with one calibration for all.

    Each tensor of the model is read once, whatever the number of formats. An artefact appears
    under its name when it is complete, never before.
    """
    from qwen3q.models.source import describe, resolve
    from qwen3q.plan.job import QuantizeRequest, job_of
    from qwen3q.process_memory import share_heap
    from qwen3q.quantize.checks import check_job, check_targets
    from qwen3q.quantize.job_notes import job_notes
    from qwen3q.quantize.options import QuantizeOptions, importance_text
    from qwen3q.quantize.run import plan_targets, predict_memory, quantize_targets, require_room

    request = QuantizeRequest(
        formats=tuple(dict.fromkeys(to or ())),
        recipe=recipe,
        calibration=calibration,
        samples=calibration_samples,
        length=calibration_length,
        group_size=group_size,
        bits=bits,
        symmetric=symmetric,
        imatrix=imatrix is not None,
    )
    job = job_of(request)
    options = QuantizeOptions(yarn, imatrix, threads, force)
    devices = tuple(device or ())
    source = describe(model, revision=revision, offline=offline)
    check_job(source, job, options, devices)
    if dry_run:
        text = importance_text(job, options)
        plans = plan_targets(source, job.targets, options, calibration=text)
        known, notes = legality_of(source, job.targets), job_notes(source, job, imatrix)
        if json_output:
            print_json(job_json(known, notes) | {"plans": [plan_json(plan) for plan in plans]})
            return
        show_plans(plans)
        show_job(known, notes)
        return
    file_types = check_targets(source, job, out, options, resume=resume)
    if source.folder is None:  # else asked at once where the work begins
        require_room(source, job, out, options, file_types, resume=resume)
    share_heap()
    with progress_bar(quiet=json_output) as progress:
        source = resolve(model, revision=revision, offline=offline, progress=progress)
        known, notes = legality_of(source, job.targets), job_notes(source, job, imatrix)
        predicted = predict_memory(source, job, options, devices)
        if not json_output:
            show_job(known, notes, predicted)
        artefacts = quantize_targets(
            source, job, out, options, devices=devices, resume=resume, progress=progress
        )
    if json_output:
        made = [artefact_json(artefact) for artefact in artefacts]
        print_json(job_json(known, notes) | {"memory": memory_json(predicted), "artefacts": made})
        return
    console = stdout_console()
    for artefact in artefacts:
        plan = artefact.plan
        size = f"{format_bytes(plan.file_bytes)}, {plan.bits_per_weight:.2f} bits per weight"
        console.print(f"{artefact.path}  {size}, {artefact.seconds:.1f} s")
    show_measured(predicted)


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


def artefact_json(artefact: Artefact) -> dict[str, Any]:
    """A finished artefact for scripts; ``seconds`` is its run's, shared with the others of it."""
    return {
        "model": artefact.plan.model,
        "format": artefact.plan.format,
        "path": str(artefact.path),
        "file_bytes": artefact.plan.file_bytes,
        "bits_per_weight": round(artefact.plan.bits_per_weight, 4),
        "seconds": round(artefact.seconds, 3),
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
