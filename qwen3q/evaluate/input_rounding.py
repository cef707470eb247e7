"""What engines do to a linear's input before an integer or 8-bit float product, back in float32.

Weights of one artefact are the same everywhere; the rounding of activations is the engine's. Left
out of a measurement, it makes W8A8, FP8 and GGUF files look better than they run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from qwen3q.quantize.arithmetic import round_activations

Rounding = Callable[[torch.Tensor], torch.Tensor]
"""Takes and gives a linear's float32 input ``[..., in]``."""

LARGEST_E4M3 = 448.0
FP8_GROUP = 128
OUTLIER = 6.0
"""LLM.int8()'s threshold."""

Q8_BLOCK = 32
Q8_K_BLOCK = 256


def int8_per_token(x: torch.Tensor) -> torch.Tensor:
    """Symmetric int8 with one scale per token: dynamic W8A8."""
    return round_activations(x, 8)


def int8_beside_outliers(x: torch.Tensor) -> torch.Tensor:
    """LLM.int8(): columns in which any token reaches 6 stay float16, the rest is int8 per token.

    Which columns those are depends on the tokens that are read together, here those of one sequence
    (arXiv 2208.07339, section 3.2; ``int8_vectorwise_quant`` in bitsandbytes).

    Args:
        x: ``[sequences, n, in]`` or ``[n, in]``.
    """
    half = x.half()
    outliers = half.abs() >= OUTLIER
    columns = outliers.any(dim=-2, keepdim=True)
    inner = half.float().masked_fill(outliers, 0)
    return torch.where(columns, half.float(), round_activations(inner, 8))


def fp8_per_token(x: torch.Tensor) -> torch.Tensor:
    """float8 e4m3 with one scale per token: compressed-tensors' FP8_DYNAMIC."""
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-10) / LARGEST_E4M3
    # Apple's GPUs have no 8-bit floats
    converter = "cpu" if x.device.type == "mps" else x.device
    return (x / scale).to(converter).to(torch.float8_e4m3fn).float().to(x.device) * scale


def fp8_per_group(x: torch.Tensor) -> torch.Tensor:
    """float8 e4m3 with one scale per token and 128 inputs, as Qwen's FP8 releases are served."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % FP8_GROUP))
    grouped = fp8_per_token(_blocks(padded, FP8_GROUP))
    return grouped.flatten(-2)[..., : x.shape[-1]]


def ggml_q8(x: torch.Tensor) -> torch.Tensor:
    """``Q8_0`` and ``Q8_1``: blocks of 32, int8 with a float16 scale (``ggml-quants.c``)."""
    blocks = _blocks(x, Q8_BLOCK)
    scale = blocks.abs().amax(dim=-1, keepdim=True) / 127
    codes = torch.where(scale > 0, blocks / scale, 0).round()
    return (codes * scale.half().float()).flatten(-2)


def ggml_q8_k(x: torch.Tensor) -> torch.Tensor:
    """``Q8_K``: blocks of 256, int8 with a float32 scale; the largest becomes -127."""
    blocks = _blocks(x, Q8_K_BLOCK)
    largest = blocks.gather(-1, blocks.abs().argmax(dim=-1, keepdim=True))
    inverse = torch.where(largest == 0, 0, -127 / largest)
    codes = (blocks * inverse).round().clamp(max=127)
    return torch.where(inverse == 0, 0, codes / inverse).flatten(-2)


def half(x: torch.Tensor) -> torch.Tensor:
    """float16."""
    return x.half().float()


def bfloat(x: torch.Tensor) -> torch.Tensor:
    """bfloat16."""
    return x.bfloat16().float()


_GGML = {
    "F16": half,
    "BF16": bfloat,
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"), ggml_q8),
}


def ggml_rounding(type_name: str) -> Rounding | None:
    """How llama.cpp's CPU kernels round the input of a linear stored as ``type_name``.

    ``vec_dot_type`` in ``ggml-cpu.c``; every type in blocks of 256 takes ``Q8_K``.
    """
    return None if type_name == "F32" else _GGML.get(type_name, ggml_q8_k)


def _blocks(x: torch.Tensor, size: int) -> torch.Tensor:
    """``[..., in]`` to ``[..., in / size, size]``."""
    return x.reshape(*x.shape[:-1], -1, size)
