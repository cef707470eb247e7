"""Scales as a layout stores them, and weights from codes, scales and zeros."""

from __future__ import annotations

import torch

from qwen3q.errors import CheckpointError


def stored_scales(scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``scales`` (float32) in the layout's dtype: the codes were solved for exactly these.

    Raises:
        CheckpointError: a scale is not finite, or no value of ``dtype``.
    """
    stored = scales.to(dtype)
    if not torch.isfinite(stored).all():
        raise CheckpointError("A scale is NaN or too large for the layout.")
    if not torch.equal(stored.float(), scales):
        name = str(dtype).removeprefix("torch.")
        raise CheckpointError(f"A scale is not rounded to {name}, which the layout stores.")
    return stored


def dequantize_groups(
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None = None,
    g_idx: torch.Tensor | None = None,
) -> torch.Tensor:
    """``(codes - zeros) * scales``, float32 ``[out, in]``.

    Args:
        codes: ``[out, in]``.
        scales, zeros: ``[out, groups]``.
        g_idx: the group of each input; equal runs in order if None.

    Raises:
        CheckpointError: groups that do not fit the inputs.
    """
    (out, columns), groups = codes.shape, scales.shape[1]
    scales = scales.float()
    zeros = None if zeros is None else zeros.float()
    in_order = torch.arange(columns, device=codes.device) * groups // columns
    if g_idx is not None and not torch.equal(g_idx.long(), in_order):
        index = g_idx.long()
        if index.numel() != columns or index.min() < 0 or index.max() >= groups:
            raise CheckpointError(f"g_idx points outside the {groups} groups of its linear.")
        weights = codes.float()
        if zeros is not None:
            weights -= zeros[:, index]
        return weights.mul_(scales[:, index])
    if scales.shape[0] != out or columns % groups:
        raise CheckpointError(
            f"{list(scales.shape)} scales do not fit a linear of {list(codes.shape)}."
        )
    weights = codes.float().contiguous()
    grouped = weights.view(out, groups, -1)
    if zeros is not None:
        grouped -= zeros.unsqueeze(-1)
    grouped *= scales.unsqueeze(-1)
    return weights
