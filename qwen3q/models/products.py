"""Products of linears, by the library that multiplies fastest on this processor."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F

_FEW_WEIGHTS = 1 << 17
"""Below this oneDNN's own overhead of about 10 microseconds is more than what it gains."""


def product(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """``x W^T``, as ``F.linear``.

    Torch gives a processor's bfloat16 products to oneDNN and float32 ones to MKL. On AMD's
    processors oneDNN is faster at these too (eval/reports/evaluation_speed.md).

    Args:
        x: ``[..., in]``.
        weight: ``[out, in]``.
        out: memory that the result may be put into; where ``x`` has two dimensions.
    """
    if x.device.type == "cpu" and x.dtype == weight.dtype:
        if x.dtype == torch.bfloat16:
            return _by_onednn(x, weight)
        if x.dtype == torch.float32 and weight.numel() >= _FEW_WEIGHTS and _prefers_onednn():
            return _by_onednn(x, weight)
    return F.linear(x, weight) if out is None else torch.mm(x, weight.T, out=out)


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """``total += left @ right``; the product of bfloat16 factors is rounded before it is added.

    Args:
        total: float32 ``[n, m]``.
        left, right: ``[n, k]`` and ``[k, m]``, both float32 or both bfloat16.
    """
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _by_onednn(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """oneDNN's product, where ``x`` is ``[rows, in]`` of padded rows.

    oneDNN compiles a kernel of about half a megabyte for each shape and keeps a thousand of them;
    experts would bring a new shape with nearly every product.
    """
    if x.dim() == 1:
        return _by_onednn(x[None], weight)[0]
    rows = x.shape[0]
    if x.dim() == 2:
        x = padded(x)
    if x.dtype == torch.float32:
        made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    else:
        made = F.linear(x, weight)
    return made[:rows]


def padded(x: torch.Tensor) -> torch.Tensor:
    """``[rows, in]`` with up to an eighth more rows of zeros: one of few shapes."""
    rows = x.shape[0]
    missing = -rows % (1 << max(0, rows.bit_length() - 4))
    return F.pad(x, (0, 0, 0, missing)) if missing else x


@cache
def slow_mkl() -> bool:
    """Whether this is an AMD processor, where MKL, torch's library of products, is slow."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    return capabilities is not None and str(capabilities().get("cpu_name")).startswith("AMD")


@cache
def _prefers_onednn() -> bool:
    """Whether MKL is slow here and torch has oneDNN's product of plain tensors."""
    return slow_mkl() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
