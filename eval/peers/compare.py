"""Runs quantizers, ours among them, judges what they wrote, and keeps one row per run in a file.

Every run gets the same calibration rows, threads and time limit, and one judge. Rows are kept in
`results.json`, so a comparison that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.peers import envs
from eval.peers.dequantize import LayoutError
from eval.peers.job import REPORT_MARK
from eval.peers.judge import judge
from eval.peers.rows import token_rows

ROWS, LENGTH = 128, 512
"""Calibration rows, and tokens in each."""
HELD_OUT_ROWS = 64
QUANTIZERS = {
    "qwen3q": ("gptq:int4", "awq:int4", "int8", "int4"),
    "gptqmodel": ("gptq:int4", "awq:int4"),
    "llmcompressor": ("gptq:int4", "awq:int4", "int8"),
    "autoawq": ("awq:int4",),
    "auto_round": ("gptq:int4", "awq:int4"),
}
"""What each one's `quantize.py` can write. LLM Compressor's `gptq:int4` is the W4A16 layout."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs of a comparison share.

    Attributes:
        calibration, text: text files to calibrate on and to judge on.
        out: folder for checkpoints and `results.json`.
        threads: per run.
        limit_seconds: a run that takes longer is stopped, and its row says so.
        again: quantizers whose kept rows are not used.
    """

    calibration: Path
    text: Path
    out: Path
    threads: int = 2
    limit_seconds: float = 3600.0
    again: tuple[str, ...] = ()

    @property
    def results(self) -> Path:
        """The file of rows."""
        return self.out / "results.json"


@dataclass(frozen=True, slots=True)
class Run:
    """One quantizer on one model."""

    quantizer: str
    model: Path
    format: str
    option: str = "default"
    """A quantizer's named variant."""

    @property
    def name(self) -> str:
        """Of its folder, log and token file."""
        suffix = "" if self.option == "default" else f"-{self.option}"
        return f"{self.model.name}-{self.quantizer}-{self.format.replace(':', '-')}{suffix}"


def compare(runs: list[Run], setting: Setting) -> int:
    """Every run that has no row yet, one after the other. Returns how many gave no figure."""
    setting.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for run in runs:
        row = kept_row(run, setting)
        if row is None:
            row = measure(run, setting)
            keep(row, setting.results)
        failed += "problem" in row
        print(line(row), flush=True)
    return failed


def runs_of(
    models: list[Path], quantizers: list[str], formats: list[str], option: str
) -> Iterator[Run]:
    """Every format that each quantizer can write, or those in `formats`, on every model."""
    for model in models:
        for quantizer in quantizers:
            for format_key in QUANTIZERS[quantizer]:
                if not formats or format_key in formats:
                    yield Run(quantizer, model, format_key, option)


def identity(run: Run, setting: Setting) -> dict[str, Any]:
    """What a row stands for: two runs with equal identities are the same measurement."""
    calibration = token_rows(run.model, setting.calibration, LENGTH, ROWS)
    held_out = token_rows(run.model, setting.text, LENGTH, HELD_OUT_ROWS)
    return {
        "quantizer": run.quantizer,
        "model": run.model.name,
        "format": run.format,
        "option": run.option,
        "version": envs.version_of(run.quantizer),
        "calibration_tokens": calibration.size,
        "calibration_sha256": token_digest(calibration),
        "held_out_sha256": token_digest(held_out),
        "threads": setting.threads,
    }


def token_digest(tokens: NDArray[np.int64]) -> str:
    """Of rows of tokens and their shape, 16 hexadecimal digits."""
    return sha256(f"{tokens.shape}".encode() + tokens.tobytes()).hexdigest()[:16]


def kept_row(run: Run, setting: Setting) -> dict[str, Any] | None:
    """The row of an equal run, or nothing."""
    if run.quantizer in setting.again:
        return None
    wanted = identity(run, setting)
    for row in read_rows(setting.results):
        if all(row.get(key) == value for key, value in wanted.items()):
            return row
    return None


def read_rows(results: Path) -> list[dict[str, Any]]:
    """The rows so far."""
    rows: list[dict[str, Any]] = json.loads(results.read_text()) if results.exists() else []
    return rows


def keep(row: dict[str, Any], results: Path) -> None:
    """Add a row to the file, in place of an earlier row of the same run."""
    key = ("quantizer", "model", "format", "option")
    rows = [r for r in read_rows(results) if any(r[k] != row[k] for k in key)]
    partial = results.with_suffix(".partial")
    partial.write_text(json.dumps([*rows, row], indent=1) + "\n")
    partial.replace(results)


def measure(run: Run, setting: Setting) -> dict[str, Any]:
    """Quantize and judge. A run without a result gives a row with its `problem`."""
    row = {**identity(run, setting), "started": f"{datetime.now(UTC):%Y-%m-%d %H:%M}"}
    folder = setting.out / run.name
    try:
        row |= quantize(run, setting, folder)
        written = written_folder(folder)
        row |= asdict(next(judge(run.model, [written], setting.text, HELD_OUT_ROWS, LENGTH)))
    except subprocess.TimeoutExpired:
        row["problem"] = f"no result in {setting.limit_seconds / 60:.0f} minutes"
    except (RuntimeError, LayoutError) as error:
        row["problem"] = str(error)
    else:
        row["file_bytes"] = sum(file.stat().st_size for file in written.glob("*.safetensors"))
        row["folder"] = str(written.relative_to(setting.out))
    return row


def quantize(run: Run, setting: Setting, folder: Path) -> dict[str, Any]:
    """What the quantizer reports: seconds, memory. Raises RuntimeError with the log's last line."""
    shutil.rmtree(folder, ignore_errors=True)
    tokens = setting.out / f"{run.name}.npy"
    np.save(tokens, token_rows(run.model, setting.calibration, LENGTH, ROWS))
    arguments = [str(run.model.resolve()), str(folder.resolve()), "--format", run.format]
    arguments += ["--tokens", str(tokens.resolve()), "--threads", str(setting.threads)]
    arguments += ["--option", run.option]
    module = f"{run.quantizer}.quantize"
    try:
        done = envs.run_module(
            run.quantizer, module, arguments, setting.threads, setting.limit_seconds
        )
    finally:
        tokens.unlink()
    (setting.out / f"{run.name}.log").write_text(done.stdout)
    reports = [x for x in done.stdout.splitlines() if x.startswith(REPORT_MARK)]
    if done.returncode != 0 or not reports:
        last = next((x for x in reversed(done.stdout.splitlines()) if x.strip()), "no output")
        raise RuntimeError(f"failed: {last[:200]}")
    report: dict[str, Any] = json.loads(reports[-1].removeprefix(REPORT_MARK))
    return report


def written_folder(folder: Path) -> Path:
    """The folder that holds the checkpoint: some quantizers write one folder further down."""
    if (folder / "config.json").exists():
        return folder
    inner = [p.parent for p in folder.glob("*/config.json")]
    if len(inner) != 1:
        raise RuntimeError(f"no checkpoint in {folder.name}")
    return inner[0]


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    name = f"{row['model']:14} {row['quantizer']:14} {row['format']:10} {row['option']:8}"
    if "problem" in row:
        return f"{name} {row['problem']}"
    return (
        f"{name} KL {row['kl_mean']:.5f} ± {row['kl_stderr']:.5f}  top-1 {row['top1']:.4f}  "
        f"ppl {row['ppl']:.2f} ({row['float_ppl']:.2f})  {row['seconds']:.0f} s, "
        f"{row['cpu_seconds']:.0f} s of CPU"
    )
