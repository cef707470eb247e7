"""The gate over a reference and its artefacts, as rows for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from qwen3q.errors import UsageError
from qwen3q.evaluate.artefact import Artefact
from qwen3q.evaluate.backends import BackendOptions
from qwen3q.evaluate.endpoint_backend import require_context, require_generation
from qwen3q.evaluate.gate import (
    Asking,
    Replies,
    Verdict,
    answer,
    chat_template,
    compare,
    longest_question,
    reply_from_json,
    reply_to_json,
)
from qwen3q.evaluate.gate_flaws import Mode
from qwen3q.evaluate.resume import Kept
from qwen3q.evaluate.tasks import Kind, Level, Task, TaskOptions, make_tasks
from qwen3q.evaluate.tokens import open_codec
from qwen3q.models.yarn import check_yarn
from qwen3q.progress import ProgressFn, silent

KINDS = (Kind.ARITHMETIC, Kind.ORDERING, Kind.COPYING)
OWN_ROPE = "own"


@dataclass(frozen=True, slots=True)
class GateOptions:
    """What is asked.

    Attributes:
        each: questions per kind.
        needle_words: length of the text a needle lies in; 0 asks for none.
        needle_yarn: ask for the needles once more with YaRN of this factor; None does not.
        max_tokens: where a reply is cut off.
        samples: replies to each question.
        greedy: take the likeliest token always, instead of sampling as the model cards advise.
    """

    level: Level = Level.STANDARD
    each: int = 20
    needle_words: int = 0
    needle_yarn: float | None = None
    max_tokens: int = 2048
    samples: int = 1
    greedy: bool = False
    seed: int = 0

    @property
    def asking(self) -> Asking:
        return Asking(self.samples, self.greedy, self.max_tokens, self.seed)


@dataclass(frozen=True, slots=True)
class _Round:
    """Questions that are asked of a model in one go.

    Attributes:
        name: ``questions`` or ``needles``.
        yarn: None for the model's own RoPE.
    """

    name: str
    tasks: tuple[Task, ...]
    yarn: float | None = None

    @property
    def rope(self) -> str:
        return OWN_ROPE if self.yarn is None else f"yarn {self.yarn:g}"


def check_gate(reference: Artefact, artefacts: Sequence[Artefact], options: GateOptions) -> None:
    """Refuses what can't be asked, before anything is measured.

    Raises:
        UsageError: options that make no questions.
        ModelError: the reference or an artefact has no chat template.
        EndpointError: a server takes no prompts of ours, or too short ones.
    """
    rounds, _ = _fitting(reference, options)
    longest = max(longest_question(reference, asked.tasks) for asked in rounds)
    for artefact in artefacts:
        chat_template(artefact, open_codec(artefact))
        require_generation(artefact)
        require_context(artefact, longest + options.max_tokens)


def run_gate(
    reference: Artefact,
    artefacts: Sequence[Artefact],
    options: GateOptions,
    backend: BackendOptions,
    progress: ProgressFn = silent,
    *,
    kept: Kept | None = None,
) -> list[dict[str, Any]]:
    """Rows of ``report.json``'s ``gate``, the reference's first.

    An endpoint is not asked with YaRN, since it has the RoPE that it was started with. Needles in
    texts beyond the reference's trained context are asked for only beside YaRN, as there every
    model fails, and takes long to.

    Args:
        kept: what earlier calls measured, and where this one's replies are kept.

    Raises:
        UsageError: options that make no questions.
        Qwen3qError: a model can't be run, or has no chat template.
    """
    rows = []
    kept = kept or Kept(None)
    rounds, note = _fitting(reference, options)
    kept.notes += [note] if note else []
    base: dict[_Round, dict[Mode, Replies]] = {}
    for artefact in (reference, *artefacts):
        for asked in rounds:
            if artefact.endpoint is not None and asked.yarn is not None:
                continue
            given = _ask(artefact, asked, options, backend, kept, progress)
            floats = base.setdefault(asked, given)
            for mode in Mode:
                verdict = None
                if given is not floats:
                    verdict = compare(floats[mode], given[mode], options.seed)
                rows.append(_row(artefact, asked, mode, given[mode], verdict, options))
    kept.notes += _inconclusive(rows)
    return rows


def _inconclusive(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where answers could not have failed a model, and why."""
    asked = {(r["set"], r["rope"], r["mode"]) for r in rows if r["verdict"] == "inconclusive"}
    return [
        f"Inconclusive: {row['artefact']} itself has {row['right']} of {row['replies']} "
        f"{row['set']} right ({row['mode']} mode, {row['rope']} RoPE), too few to tell what "
        "others lost."
        for row in rows
        if row["verdict"] == "reference" and (row["set"], row["rope"], row["mode"]) in asked
    ]


def _fitting(reference: Artefact, options: GateOptions) -> tuple[tuple[_Round, ...], str | None]:
    """What is asked, and why something is not."""
    rounds = _rounds(options)
    if not options.needle_words or options.needle_yarn is not None:
        return rounds, None
    longest = longest_question(reference, rounds[-1].tasks)
    trained = open_codec(reference).trained_context
    if not longest > trained > 0:
        return rounds, None
    return rounds[:-1], (
        f"Questions with needles take {longest:,} tokens, and {reference.name} was trained on "
        f"{trained:,}: not asked. --needle-yarn asks with the context extended, and without."
    )


def _rounds(options: GateOptions) -> tuple[_Round, ...]:
    if options.needle_yarn is not None:
        if not options.needle_words:
            raise UsageError(
                "YaRN is tried on needles, and none are asked for.", "Add --needle-words."
            )
        check_yarn(options.needle_yarn, "--needle-yarn")
    if options.samples < 1:
        raise UsageError(f"--gate-samples {options.samples} is too few: at least 1.")
    tasks = make_tasks(TaskOptions(KINDS, options.level, options.each, seed=options.seed))
    rounds = [_Round("questions", tuple(tasks))]
    if options.needle_words:
        needles = make_tasks(
            TaskOptions(
                (Kind.NEEDLE,), options.level, options.each, options.needle_words, options.seed
            )
        )
        rounds.append(_Round("needles", tuple(needles)))
        if options.needle_yarn is not None:
            rounds.append(_Round("needles", tuple(needles), options.needle_yarn))
    return tuple(rounds)


def _ask(
    artefact: Artefact,
    asked: _Round,
    options: GateOptions,
    backend: BackendOptions,
    kept: Kept,
    progress: ProgressFn,
) -> dict[Mode, Replies]:
    """A model's replies, given now or in an earlier call."""
    extended = "" if asked.yarn is None else f" with {asked.rope}"

    def report(done: int, total: int, _: str) -> None:
        progress(done, total, f"{artefact.name}: {asked.name}{extended}")

    with_rope = replace(backend, yarn=asked.yarn)
    section = f"gate: {asked.name}{extended}"
    settings = (options, replace(with_rope, threads=None))
    with ExitStack() as until_kept:

        def measure() -> dict[str, list[list[dict[str, Any]]]]:
            answers = until_kept.enter_context(kept.answers(artefact, section, settings))
            given = answer(artefact, asked.tasks, options.asking, with_rope, answers, report)
            return {
                str(mode): [[reply_to_json(reply) for reply in each] for each in replies]
                for mode, replies in given.items()
            }

        plain = kept.get(artefact, section, settings, measure)
    return {
        mode: [
            tuple(reply_from_json(task, reply) for reply in given)
            for task, given in zip(asked.tasks, plain[str(mode)], strict=True)
        ]
        for mode in Mode
    }


def failed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Artefacts that failed in a mode."""
    return list(dict.fromkeys(str(row["artefact"]) for row in rows if row["verdict"] == "fail"))


def _row(
    artefact: Artefact,
    asked: _Round,
    mode: Mode,
    replies: Replies,
    verdict: Verdict | None,
    options: GateOptions,
) -> dict[str, Any]:
    every = [reply for given in replies for reply in given]
    flaws = Counter(str(flaw) for reply in every for flaw in reply.flaws)
    right = Counter(str(reply.task.kind) for reply in every if reply.right)
    kinds = Counter(str(reply.task.kind) for reply in every)
    sampling = options.asking.sampling(mode, 0, 0)
    row: dict[str, Any] = {
        "run": 0,
        "artefact": artefact.name,
        "format": artefact.format,
        "file_bytes": artefact.file_bytes,
        "mode": str(mode),
        "set": asked.name,
        "rope": asked.rope,
        "verdict": "reference",
        "sampling": {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k")},
        "seed": options.seed,
        "questions": len(replies),
        "replies": len(every),
        "right": sum(reply.right for reply in every),
        "by_kind": {kind: {"asked": kinds[kind], "right": right[kind]} for kind in kinds},
        "flaws": dict(sorted(flaws.items())),
        "flawed": sum(bool(reply.flaws) for reply in every),
        "thinking_tokens": fmean(reply.thinking_tokens for reply in every),
    }
    if asked.name == "needles":
        row["needle_words"] = options.needle_words
    if verdict is not None:
        row["verdict"] = verdict.word
        row["change"] = asdict(verdict.right)
        row["flaw_change"] = asdict(verdict.flawed)
        row["thinking_change"] = asdict(verdict.thinking)
    return row
