"""Runs peers as quantizers, judges what they wrote, and keeps one row per run in a JSON file."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from eval.peers import envs
from eval.peers.job import REPORT_MARK
from eval.peers.judge import judge
from eval.peers.rows import token_rows

ROWS, LENGTH = 128, 512
LIMIT_SECONDS = 3 * 3600.0
QUANTIZERS = {
    "gptqmodel": ("gptq:int4", "awq:int4"),
    "llmcompressor": ("gptq:int4", "awq:int4", "int8"),
    "autoawq": ("awq:int4",),
    "auto_round": ("gptq:int4", "awq:int4"),
}
"""What each peer's `quantize.py` can write. LLM Compressor's `gptq:int4` is the W4A16 layout."""


def run_baseline(
    peer: str,
    model: Path,
    format_key: str,
    calibration: Path,
    text: Path,
    out: Path,
    option: str = "default",
    threads: int = 2,
) -> dict[str, Any]:
    """One peer's run on one model, judged on `text`. Raises RuntimeError with the log's end."""
    out.mkdir(parents=True, exist_ok=True)
    suffix = "" if option == "default" else f"-{option}"
    folder = out / f"{model.name}-{peer}-{format_key.replace(':', '-')}{suffix}"
    shutil.rmtree(folder, ignore_errors=True)
    tokens = folder.with_suffix(".npy")
    np.save(tokens, token_rows(model, calibration, LENGTH, ROWS))
    arguments = [
        str(model.resolve()),
        str(folder.resolve()),
        "--format",
        format_key,
        "--tokens",
        str(tokens.resolve()),
    ]
    arguments += ["--threads", str(threads), "--option", option]
    done = envs.run_module(peer, f"{peer}.quantize", arguments, threads, LIMIT_SECONDS)
    folder.with_suffix(".log").write_text(done.stdout)
    reports = [x for x in done.stdout.splitlines() if x.startswith(REPORT_MARK)]
    if done.returncode != 0 or not reports:
        raise RuntimeError(f"{peer} {format_key} on {model.name} failed:\n{done.stdout[-2000:]}")
    report = json.loads(reports[-1].removeprefix(REPORT_MARK))
    verdict = asdict(next(judge(model, [written_folder(folder)], text)))
    run = {"peer": peer, "model": model.name, "format": format_key, "option": option}
    return {**run, **report, **verdict}


def written_folder(folder: Path) -> Path:
    """The folder that holds the checkpoint: some peers write one folder further down."""
    if (folder / "config.json").exists():
        return folder
    inner = [p.parent for p in folder.glob("*/config.json")]
    if len(inner) != 1:
        raise RuntimeError(f"no checkpoint in {folder}")
    return inner[0]


def keep(row: dict[str, Any], results: Path) -> None:
    """Add a row to the results file, in place of an earlier row of the same run."""
    rows = json.loads(results.read_text()) if results.exists() else []
    key = ("peer", "model", "format", "option")
    rows = [r for r in rows if any(r[k] != row[k] for k in key)]
    partial = results.with_suffix(".partial")
    partial.write_text(json.dumps([*rows, row], indent=1) + "\n")
    partial.replace(results)


def run_all(
    peers: list[str],
    models: list[Path],
    formats: list[str],
    calibration: Path,
    text: Path,
    out: Path,
    option: str = "default",
) -> int:
    """Every named peer on every model, one after the other; failures are told and counted."""
    failed = 0
    for model in models:
        for peer in peers:
            for format_key in QUANTIZERS[peer]:
                if formats and format_key not in formats:
                    continue
                try:
                    row = run_baseline(peer, model, format_key, calibration, text, out, option)
                except (RuntimeError, ValueError) as error:
                    print(f"{error}", file=sys.stderr, flush=True)
                    failed += 1
                    continue
                keep(row, out / "results.json")
                print(
                    f"{model.name:14} {peer:14} {format_key:10} {option:8} "
                    f"KL {row['kl_mean']:.5f} ± {row['kl_stderr']:.5f}  top-1 {row['top1']:.4f}  "
                    f"ppl {row['ppl']:.2f} ({row['float_ppl']:.2f})  {row['seconds']:.0f} s, "
                    f"{row['cpu_seconds']:.0f} s of CPU, {row['peak_rss_mb']:.0f} MiB",
                    flush=True,
                )
    return failed
