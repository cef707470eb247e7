"""``qwen3q eval ARTEFACT...``: artefacts against their float model, on identical tokens."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3q.cli.eval_endpoint import show_streaming
from qwen3q.cli.eval_gate import gate_options, show_gate
from qwen3q.cli.eval_harness import harness_options, show_tasks
from qwen3q.cli.eval_speed import show_speed
from qwen3q.cli.narrow_tables import show_tables
from qwen3q.cli.options import (
    ContributeOption,
    GpuLayersOption,
    OfflineFlag,
    ThreadsOption,
    TorchDeviceOption,
)
from qwen3q.cli.output import JsonFlag, format_bytes, note, print_json, progress_bar, stdout_console
from qwen3q.counts import counted

if TYPE_CHECKING:
    from qwen3q.evaluate.hub_text import MeasuredText
    from qwen3q.evaluate.measure import TextOptions
    from qwen3q.evaluate.suites import Suite

GATE_FAILED = 3
"""Exit code when ``--gate`` finds an artefact's answers worse than its float model's."""


def fidelity(
    artefacts: Annotated[
        list[str],
        typer.Argument(metavar="ARTEFACT...", help="Folders, GGUF files, MODEL:TYPE, or URLs."),
    ],
    reference: Annotated[
        str, typer.Option(help="The float model: folder, name, GGUF file or MODEL:BF16.")
    ],
    suite: Annotated[
        str | None, typer.Option(help="quick, standard or full: text, gate and speed in one.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|hub:SET",
            help="UTF-8 text, or hub:wikitext-2, hub:c4, hub:ptb. Default: the built-in text.",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=4, help="Tokens per chunk. Default: 512, or the set's.", show_default=False
        ),
    ] = None,
    scored: Annotated[
        str | None,
        typer.Option(
            help="half or full: which positions of a chunk count. Default: half, or the set's.",
            show_default=False,
        ),
    ] = None,
    max_chunks: Annotated[int | None, typer.Option(min=1, help="Default: all of the text.")] = None,
    parse_special: Annotated[
        bool,
        typer.Option(
            "--parse-special", help="Read <|im_start|> as a token, as the built-in text is."
        ),
    ] = False,
    backend: Annotated[
        str, typer.Option(help="auto (GGUF: llama.cpp, folders: torch), llama or torch.")
    ] = "auto",
    device: TorchDeviceOption = None,
    gpu_layers: GpuLayersOption = -1,
    threads: ThreadsOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html, .md, .json and the reference's logits."),
    ] = None,
    gate: Annotated[
        bool,
        typer.Option(
            "--gate", help="Ask questions too (suites do); exit with 3 if answers got worse."
        ),
    ] = False,
    gate_level: Annotated[
        str | None,
        typer.Option(help="basic (small models) or standard, the default.", show_default=False),
    ] = None,
    gate_questions: Annotated[
        int | None, typer.Option(min=1, help="Questions per kind. Default: 20.", show_default=False)
    ] = None,
    gate_samples: Annotated[
        int | None,
        typer.Option(min=1, help="Replies per question. Default: 1.", show_default=False),
    ] = None,
    gate_greedy: Annotated[
        bool,
        typer.Option("--gate-greedy", help="Decode greedily, not sampled as the model cards say."),
    ] = False,
    needle_words: Annotated[
        int | None,
        typer.Option(
            min=0, help="Also ask for a needle in a text of so many words.", show_default=False
        ),
    ] = None,
    needle_yarn: Annotated[
        float | None,
        typer.Option(help="Ask for the needles with YaRN of this factor too.", show_default=False),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Where a reply is cut off. Default: 2048.", show_default=False),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="TASK,...",
            help="Run tasks of lm-evaluation-harness too, such as gsm8k,mmlu, or YAML files.",
            show_default=False,
        ),
    ] = None,
    task_limit: Annotated[
        int | None, typer.Option(min=1, help="Questions per task. Default: all.")
    ] = None,
    task_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Solved examples. Default: the task's own number.")
    ] = None,
    speed: Annotated[
        bool,
        typer.Option(
            "--speed", help="Time prefill and decode at two depths, and account for memory."
        ),
    ] = False,
    contribute: ContributeOption = None,
    card: Annotated[
        bool, typer.Option("--update-card", help="Put the figures into each folder's README.md.")
    ] = False,
    endpoint_model: Annotated[
        str | None, typer.Option(help="Of an URL's models, where it serves several.")
    ] = None,
    endpoint_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that an URL's answer may take.")
    ] = 600.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take from --out what an interrupted call measured.")
    ] = False,
    offline: OfflineFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Perplexity, KL divergence and same top-1 against the float model.

    Definitions are llama-perplexity's: chunks are read by themselves, the second half of each is
    scored. With --out, the reference's logits are kept there and serve the next call.

    With --gate, float model and artefacts answer the same generated questions, with thinking and
    without; the exit code is 3 where an artefact gives fewer right answers or more flawed replies,
    by 95 % bootstrap intervals.

    URLs are OpenAI-compatible endpoints, asked in the reference's tokens; a key goes into
    QWEN3Q_API_KEY or OPENAI_API_KEY.
    """
    from qwen3q.errors import UsageError
    from qwen3q.evaluate.backends import BackendKind, BackendOptions
    from qwen3q.evaluate.chunks import Scored
    from qwen3q.evaluate.endpoint import EndpointOptions
    from qwen3q.evaluate.endpoint_http import is_url
    from qwen3q.evaluate.evaluation import EvaluationOptions, evaluate
    from qwen3q.evaluate.gate_run import failed
    from qwen3q.evaluate.hub_text import find_text
    from qwen3q.evaluate.measure import TextOptions
    from qwen3q.evaluate.speed_options import SpeedOptions
    from qwen3q.evaluate.suites import read_suite

    if endpoint_model is not None and not any(map(is_url, artefacts)):
        raise UsageError(
            f"--endpoint-model {endpoint_model} is for endpoints, and no URL is given.",
            "Such as http://127.0.0.1:8080.",
        )
    if backend not in list(BackendKind):
        raise UsageError(f"{backend!r} is no backend.", f"Known: {', '.join(BackendKind)}.")
    if scored not in (None, *Scored):
        raise UsageError(f"--scored {scored} is unknown.", f"Known: {', '.join(Scored)}.")
    wanted = read_suite(suite) if suite else None
    tests = wanted.speed if wanted else None
    if speed and tests is None:
        tests = SpeedOptions((128, 512), 64, (0, 512), 5)
    if contribute is not None and tests is None:
        raise UsageError(f"--contribute {contribute}: nothing is timed.", "Add --speed.")
    measured = find_text(text)
    form = _text_form(measured, wanted, given=text is not None)
    scored_text = TextOptions(
        context or form.context,
        max_chunks or form.max_chunks,
        parse_special or form.parse_special,
        Scored(scored or form.scored),
    )
    questions = gate_options(
        wanted.gate if wanted else None,
        gate,
        level=gate_level,
        each=gate_questions,
        samples=gate_samples,
        greedy=gate_greedy,
        needle_words=needle_words,
        needle_yarn=needle_yarn,
        max_tokens=max_tokens,
    )
    options = EvaluationOptions(
        scored_text,
        BackendOptions(BackendKind(backend), threads, gpu_layers, device),
        gate=questions,
        gate_decides=gate,
        contribute=contribute,
        tasks=harness_options(tasks, task_limit, task_fewshot),
        speed=replace(tests, threads=threads) if tests else None,
        out=out,
        cards=card,
        command=("qwen3q", *sys.argv[1:]),
        offline=offline,
        resume=resume,
        endpoint=EndpointOptions(endpoint_model, endpoint_timeout),
    )
    content = measured.load(offline)
    with progress_bar(quiet=json_output) as progress:
        done = evaluate(reference, artefacts, measured.name, content, options, progress)
    report = done.report
    for sentence in done.notes:
        note(sentence)
    if json_output:
        print_json(report)
    else:
        show_report(report, done.written)
    if gate and (worse := failed(report["gate"])):
        note(f"The gate failed: answers of {', '.join(worse)} got worse.")
        raise typer.Exit(GATE_FAILED)


def _text_form(measured: MeasuredText, suite: Suite | None, *, given: bool) -> TextOptions:
    """How a text is cut and scored where no option says so: as its set was published. A suite says
    so of the built-in text; of others just how much is read, and how much at once."""
    from qwen3q.evaluate.measure import TextOptions

    form = TextOptions(
        measured.context, measured.max_chunks, measured.parse_special, measured.scored
    )
    if suite is None:
        return form
    if not given:
        return suite.text
    most = suite.text.max_chunks or form.max_chunks
    return replace(form, context=suite.text.context, max_chunks=most)


def show_report(report: Mapping[str, Any], written: Sequence[Path]) -> None:
    """Every part that was measured, and the files that tell more."""
    show_results(report)
    show_gate(report)
    show_tasks(report)
    show_speed(report)
    show_streaming(report)
    for path in written:
        note(str(path))


def show_results(report: Mapping[str, Any]) -> None:
    """The table at once: one line per artefact, best divergence first within a run."""
    from qwen3q.evaluate.groups import divergence_rank, missing_notes
    from qwen3q.evaluate.tables import Table

    cells: list[tuple[str, ...]] = []
    for number, run in enumerate(report["runs"]):
        facts = run["reference"]
        name, nbytes = f"{facts['artefact']} (reference)", format_bytes(facts["file_bytes"])
        cells.append((name, nbytes, f"{facts['perplexity']:.3f}", "", "", ""))
        rows = [row for row in report["results"] if row["run"] == number]
        for row in sorted(rows, key=divergence_rank):
            spread = _figure(row.get("kl_mean_stderr"), " ± {:.5f}", "")
            cells.append(
                (
                    row["artefact"],
                    "–" if row["file_bytes"] is None else format_bytes(row["file_bytes"]),
                    _figure(row["perplexity"], "{:.3f}"),
                    _figure(row["kl_mean"], "{:z.5f}") + spread,
                    _figure(row["kl_p99"], "{:z.4f}"),
                    _figure(row["top1"], "{:.2%}"),
                )
            )
    heads = ("artefact", "size", "perplexity", "KL mean", "KL 99 %", "top-1")
    show_tables([(None, Table(heads, tuple(cells)))])
    for run in report["runs"]:
        facts, text = run["reference"], run["text"]
        stdout_console().print(
            f"{text['name']}: {counted(facts['chunks'], 'chunk')} of {facts['context']} tokens, "
            f"{facts['tokens']:,} scored; KL in nats against {facts['artefact']}.",
            style="dim",
        )
    for sentence in missing_notes(report["results"]):
        note(sentence)


def _figure(value: float | None, form: str, none: str = "–") -> str:
    return none if value is None else form.format(value)
