"""The judge: what quantization cost, by one independent measure for every writer's checkpoint.

Each folder's weights are dequantized by `dequantize.py` and run by transformers in float32, on
the same tokens as the float model. Where serving quantizes a linear's input (W8A8), the input is
rounded to int8 per token here too.

    python eval/peers/judge.py FLOAT_DIR QUANT_DIR... --text FILE [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from eval.peers.dequantize import LayoutError, dequantize_folder, read_config
from eval.peers.rows import token_rows


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one checkpoint lost against the float model, over `tokens` positions."""

    folder: str
    layout: str
    kl_mean: float
    """Nats per position, KL(float || quantized), over all positions."""
    kl_stderr: float
    """Standard error of the mean, with rows as the independent samples."""
    top1: float
    """Share of positions where both models rank the same token first."""
    ppl: float
    float_ppl: float
    nll: float
    """Mean negative log likelihood of the next token, nats."""
    tokens: int
    context: int
    """Tokens per row; each row is run on its own."""


def judge(
    float_dir: Path, folders: list[Path], text: Path, rows: int = 64, context: int = 512
) -> Iterator[Verdict]:
    """Measure each folder against `float_dir` on at most `rows` rows of `context` tokens."""
    tokens = torch.from_numpy(token_rows(float_dir, text, context, rows))
    reference = load_float32(float_dir)
    for folder in folders:
        yield _measure(reference, load_float32(folder, float_dir), folder, tokens)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A float32 transformers model and the layout its weights came from."""

    model: Any
    layout: str


def load_float32(folder: Path, config_from: Path | None = None) -> Loaded:
    """A folder's weights in a float32 transformers model; LayoutError if keys do not match."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    cast(Any, logging).disable_progress_bar()
    checkpoint = dequantize_folder(folder)
    config = read_config(config_from or folder)
    config.pop("quantization_config", None)
    with tempfile.TemporaryDirectory() as scratch:
        weights = {name: tensor.contiguous() for name, tensor in checkpoint.weights.items()}
        if config.get("tie_word_embeddings"):
            weights.pop("lm_head.weight", None)
        save_file(weights, Path(scratch) / "model.safetensors", metadata={"format": "pt"})
        (Path(scratch) / "config.json").write_text(json.dumps(config))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            scratch, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    model, info = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise LayoutError(f"{folder}: {kind}: {sorted(map(str, info[kind]))[:3]}")
    if checkpoint.int8_inputs:
        _quantize_inputs(model, checkpoint.int8_inputs)
    return Loaded(model.eval(), checkpoint.layout)


def round_to_int8(x: Tensor) -> Tensor:
    """Symmetric int8 per token (last axis), scale = largest magnitude / 127, back in float."""
    scale = (x.abs().amax(dim=-1, keepdim=True) / 127).clamp(min=1e-10)
    return (x / scale).round().clamp(-128, 127) * scale


def _quantize_inputs(model: Any, names: frozenset[str]) -> None:
    """Round the inputs of the named linears; transformers' fused experts are done as a block."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    done = set()
    for name, module in model.named_modules():
        if name in names:
            module.register_forward_pre_hook(lambda _, args: (round_to_int8(args[0]), *args[1:]))
            done.add(name)
        elif isinstance(module, Qwen3MoeExperts):
            inside = {n for n in names if n.startswith(f"{name}.")}
            if len(inside) != 3 * module.num_experts:
                raise LayoutError(f"{name}: only some experts have int8 inputs")
            _wrap_experts(module)
            done |= inside
    if done != names:
        raise LayoutError(f"no module for int8 inputs of {sorted(names - done)[:3]}")


def _wrap_experts(experts: Any) -> None:
    experts.config._experts_implementation = "eager"
    plain = experts.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _rounding_linear():
            return plain(*args, **kwargs)

    experts.forward = forward


@contextmanager
def _rounding_linear() -> Iterator[None]:
    """Rounds the input of `nn.functional.linear`, which the experts' eager forward calls."""
    plain = torch.nn.functional.linear
    torch.nn.functional.linear = lambda x, *rest: plain(round_to_int8(x), *rest)
    try:
        yield
    finally:
        torch.nn.functional.linear = plain


@torch.inference_mode()
def prompt_nll(model: Any, tokens: NDArray[np.int64]) -> float:
    """Mean negative log likelihood of each row's next tokens, nats."""
    total = 0.0
    for row in torch.from_numpy(tokens):
        scores = model(row[None]).logits[0, :-1].double().log_softmax(-1)
        total -= float(scores.gather(1, row[1:, None]).mean())
    return total / len(tokens)


@torch.inference_mode()
def _measure(reference: Loaded, quantized: Loaded, folder: Path, tokens: Tensor) -> Verdict:
    kl, agree, nll, float_nll = [], [], [], []
    for row in tokens:
        p = reference.model(row[None]).logits[0].double().log_softmax(-1)
        q = quantized.model(row[None]).logits[0].double().log_softmax(-1)
        kl.append(float((p.exp() * (p - q)).sum(-1).mean()))
        agree.append(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
        target = row[1:, None]
        nll.append(-float(q[:-1].gather(1, target).mean()))
        float_nll.append(-float(p[:-1].gather(1, target).mean()))
    mean_kl = torch.tensor(kl, dtype=torch.float64)
    return Verdict(
        folder=str(folder),
        layout=quantized.layout,
        kl_mean=float(mean_kl.mean()),
        kl_stderr=float(mean_kl.std() / math.sqrt(len(kl))) if len(kl) > 1 else math.nan,
        top1=sum(agree) / len(agree),
        ppl=math.exp(sum(nll) / len(nll)),
        float_ppl=math.exp(sum(float_nll) / len(float_nll)),
        nll=sum(nll) / len(nll),
        tokens=tokens.numel(),
        context=tokens.shape[1],
    )


def main() -> int:
    """Print the table (or one JSON list) for the folders named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("float_dir", type=Path, metavar="FLOAT_DIR")
    parser.add_argument("folders", type=Path, nargs="+", metavar="QUANT_DIR")
    parser.add_argument("--text", type=Path, required=True, help="held-out text")
    parser.add_argument("--rows", type=int, default=64, help="rows at most (default 64)")
    parser.add_argument("--context", type=int, default=512, help="tokens per row (default 512)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    verdicts, failed = [], False
    if not args.json:
        print(f"{'KL (nats)':>10} {'± s.e.':>9} {'top-1':>7} {'ppl':>9} {'float':>8}  checkpoint")
    try:
        for v in judge(args.float_dir, args.folders, args.text, args.rows, args.context):
            verdicts.append(asdict(v))
            if not args.json:
                print(
                    f"{v.kl_mean:10.6f} {v.kl_stderr:9.6f} {v.top1:7.4f} {v.ppl:9.4f} "
                    f"{v.float_ppl:8.4f}  {v.folder} ({v.layout})",
                    flush=True,
                )
    except (LayoutError, OSError) as error:
        print(f"judge: {error}", file=sys.stderr)
        failed = True
    if args.json:
        print(json.dumps(verdicts, indent=1))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
