"""Reads checkpoints back in other people's engines and sets their prompt NLL beside the judge's.

A load that leaves a parameter without a stored tensor, or a stored tensor without a parameter, is
a failure, whatever the NLL: some engines then run on random weights and raise nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.peers import envs
from eval.peers.dequantize import read_config
from eval.peers.job import REPORT_MARK
from eval.peers.judge import load_float32, prompt_nll
from eval.peers.rows import token_rows

TOLERANCE = 0.002
"""Largest relative difference between an engine's prompt NLL and the judge's."""
LIMIT_SECONDS = 1800.0

READERS = {
    "gptq": ("vllm_cpu", "transformers", "gptqmodel", "auto_gptq"),
    "awq": ("vllm_cpu", "transformers", "gptqmodel", "autoawq"),
    "compressed-tensors": ("vllm_cpu", "transformers"),
    "bitsandbytes": ("transformers",),
}
"""Engines that read a `quant_method` at all."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One engine's reading of one artefact."""

    artefact: str
    layout: str
    peer: str
    version: str
    nll: float | None
    judge_nll: float
    difference: float | None
    """(engine - judge) / judge."""
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    problem: str
    """Empty when the engine agrees."""


@dataclass(frozen=True, slots=True)
class Report:
    """Every reading, and what was not read, with the reason."""

    readings: tuple[Reading, ...]
    left_out: tuple[str, ...]
    tokens: int

    @property
    def failures(self) -> int:
        """Readings with a problem."""
        return sum(bool(r.problem) for r in self.readings)


def read_back(
    folders: list[Path], text: Path, rows: int = 8, context: int = 512, only: tuple[str, ...] = ()
) -> Report:
    """Each folder in every engine that can run it and has an environment, or those in `only`."""
    readings: list[Reading] = []
    left_out: dict[str, None] = {}
    count = 0
    for folder in folders:
        config = read_config(folder)
        tokens = token_rows(folder, text, context, rows)
        count = tokens.size
        loaded = load_float32(folder)
        judged = prompt_nll(loaded.model, tokens)
        for peer in READERS[config["quantization_config"]["quant_method"]]:
            if only and peer not in only:
                continue
            if not envs.python_of(peer).exists():
                left_out[f"{peer}: no environment (python -m eval.peers make {peer})"] = None
                continue
            reason = cannot_read(peer, config)
            if reason:
                left_out[f"{folder.name} in {peer}: {reason}"] = None
                continue
            reading = _read_one(peer, folder, loaded.layout, tokens, judged)
            print(_line(reading), file=sys.stderr, flush=True)
            readings.append(reading)
    return Report(tuple(readings), tuple(left_out), count)


def cannot_read(peer: str, config: dict[str, Any]) -> str:
    """Why this engine can't run such a checkpoint on a CPU, or nothing if it can."""
    quant = config["quantization_config"]
    method = quant["quant_method"]
    experts = "num_experts" in config or "num_local_experts" in config
    if peer == "vllm_cpu" and experts:
        return "no CPU kernel for quantized experts"
    if peer == "transformers" and experts and method in ("gptq", "awq"):
        return "leaves the experts unloaded and raises nothing"
    if peer == "transformers" and experts and method == "bitsandbytes":
        return "leaves fused experts unquantized"
    if peer == "transformers" and experts and quant.get("format") == "int-quantized":
        return "takes experts from packed or FP8 tensors only"
    if peer == "auto_gptq" and experts:
        return "knows no Qwen3 experts"
    if peer == "vllm_cpu" and method == "gptq" and (quant["bits"] != 4 or not quant["sym"]):
        return f"no CPU kernel for {quant['bits']}-bit weights, sym={str(quant['sym']).lower()}"
    return ""


def _read_one(
    peer: str, folder: Path, layout: str, tokens: NDArray[np.int64], judged: float
) -> Reading:
    with tempfile.TemporaryDirectory() as scratch:
        prompt = Path(scratch) / "prompt.npy"
        np.save(prompt, tokens)
        arguments = [str(folder.resolve()), "--tokens", str(prompt)]
        try:
            done = envs.run_module(peer, f"{peer}.readback", arguments, 2, LIMIT_SECONDS)
            output = done.stdout
        except subprocess.TimeoutExpired:
            output = f"no answer in {LIMIT_SECONDS:.0f} s"
    lines = [x for x in output.splitlines() if x.startswith(REPORT_MARK)]
    if not lines:
        last = next((x for x in reversed(output.splitlines()) if x.strip()), "no output")
        return Reading(
            folder.name, layout, peer, "", None, judged, None, (), (), f"did not run: {last[:200]}"
        )
    told = json.loads(lines[-1].removeprefix(REPORT_MARK))
    difference = told["nll"] / judged - 1
    missing, unexpected = tuple(told["missing"]), tuple(told["unexpected"])
    problem = ""
    if missing or unexpected:
        problem = f"{len(missing)} missing and {len(unexpected)} unexpected keys"
    elif not abs(difference) <= TOLERANCE:
        problem = f"NLL differs by {difference:+.2%}"
    return Reading(
        artefact=folder.name,
        layout=layout,
        peer=peer,
        version=told["version"],
        nll=told["nll"],
        judge_nll=judged,
        difference=difference,
        missing=missing[:5],
        unexpected=unexpected[:5],
        problem=problem,
    )


def save(report: Report, out: Path) -> None:
    """Write `readback.md` and `readback.json` into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "readback.json").write_text(json.dumps(asdict(report), indent=1) + "\n")
    (out / "readback.md").write_text(markdown(report))


def merged(report: Report, out: Path) -> Report:
    """The report with what the one in `out` says of other artefacts, if its tokens are as many.

    Of the same artefact, as the judge's NLL tells, what other engines made of it stays too.
    """
    path = out / "readback.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    if earlier.get("tokens") != report.tokens:
        return report
    judged = {r.artefact: r.judge_nll for r in report.readings}
    asked = {f"{r.artefact} in {r.peer}" for r in report.readings}
    asked |= {line.partition(":")[0] for line in report.left_out}
    kept = [
        Reading(**{**r, "missing": tuple(r["missing"]), "unexpected": tuple(r["unexpected"])})
        for r in earlier["readings"]
        if f"{r['artefact']} in {r['peer']}" not in asked
        and judged.get(r["artefact"], r["judge_nll"]) == r["judge_nll"]
    ]
    left_out = [line for line in earlier["left_out"] if line.partition(":")[0] not in asked]
    readings = sorted((*kept, *report.readings), key=lambda r: r.artefact)
    return Report(
        tuple(readings), tuple(dict.fromkeys((*left_out, *report.left_out))), report.tokens
    )


def markdown(report: Report) -> str:
    """The report as a page: the table, and what was left out."""
    lines = [
        "# Read back by others",
        "",
        f"Prompt NLL (nats per token, {report.tokens} tokens of held-out text) of each artefact in "
        "other engines,",
        "beside a float32 forward pass on independently dequantized weights. At most "
        f"{TOLERANCE:.1%} apart, with no",
        "missing or unexpected keys, is agreement.",
        "",
        "| artefact | layout | engine | version | NLL | judge | difference | keys | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in report.readings:
        nll = "-" if r.nll is None else f"{r.nll:.4f}"
        difference = "-" if r.difference is None else f"{r.difference:+.3%}"
        keys = "all" if not (r.missing or r.unexpected) else ", ".join(r.missing + r.unexpected)
        lines.append(
            f"| {r.artefact} | {r.layout} | {r.peer} | {r.version} | {nll} | {r.judge_nll:.4f} | "
            f"{difference} | {keys if r.nll is not None else '-'} | {r.problem or 'agrees'} |"
        )
    if report.left_out:
        lines += ["", "Left out:", "", *(f"- {reason}" for reason in report.left_out)]
    return "\n".join(lines) + "\n"


def _line(r: Reading) -> str:
    difference = "" if r.difference is None else f"{r.difference:+.3%}"
    return f"{r.artefact:40} {r.peer:14} {difference:>9}  {r.problem or 'agrees'}"
