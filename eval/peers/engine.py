"""What every peer's `readback.py` shares: load a folder, tell the prompt's NLL and the odd keys.

Runs inside the peers' environments, so it needs only torch, safetensors and numpy.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.peers.job import REPORT_MARK


@dataclass(frozen=True, slots=True)
class Prompt:
    """A checkpoint folder and the token rows `[rows, length]` whose NLL an engine is asked for."""

    folder: Path
    tokens: NDArray[np.int64]


def read_prompt() -> Prompt:
    """The prompt from the command line; fixes torch's thread count before anything runs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=Path, required=True, help=".npy of [rows, length]")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import torch

    torch.set_num_threads(args.threads)
    return Prompt(args.folder, np.load(args.tokens, allow_pickle=False))


def mean_nll(model: Any, tokens: NDArray[np.int64]) -> float:
    """Mean negative log likelihood of each row's next tokens, nats, of a causal LM."""
    import torch

    total = 0.0
    with torch.inference_mode():
        for row in torch.from_numpy(tokens):
            logits = model(input_ids=row[None], use_cache=False).logits[0, :-1]
            scores = logits.double().log_softmax(-1).gather(1, row[1:, None])
            total -= float(scores.mean())
    return total / len(tokens)


def odd_keys(folder: Path, expected: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names the model has and the files lack, and the reverse; a tied `lm_head` is in neither."""
    from safetensors import safe_open

    stored: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as handle:
            stored.update(handle.keys())
    wanted = set(expected)
    if json.loads((folder / "config.json").read_text()).get("tie_word_embeddings"):
        stored.discard("lm_head.weight")
        wanted.discard("lm_head.weight")
    return sorted(wanted - stored), sorted(stored - wanted)


def tell(package: str, nll: float, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Print the line that the driver reads."""
    fields = {
        "version": version(package),
        "nll": nll,
        "missing": sorted(missing),
        "unexpected": sorted(unexpected),
    }
    print(f"\n{REPORT_MARK}{json.dumps(fields)}", flush=True)
