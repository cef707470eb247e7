"""Codes of 2, 3, 4 and 8 bits packed into 32-bit words, least significant bit first.

Packing is a stream of bits: code j lies at bits ``j * width`` and up, across word borders for
widths that do not divide 32. Little-endian hosts only, as safetensors is.
"""

from __future__ import annotations

import torch


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Packs along the last dimension.

    Args:
        codes: uint8 ``[..., n]``, each below ``2**bits``; ``n * bits`` divides by 32.
        bits: 2, 3, 4 or 8.

    Returns:
        int32 ``[..., n * bits / 32]``.
    """
    if bits == 3:
        return _pack3(codes)
    packed = codes.contiguous()
    width = bits
    while width < 8:
        pairs = packed.view(*packed.shape[:-1], -1, 2)
        packed = pairs[..., 0] | (pairs[..., 1] << width)
        width *= 2
    return packed.reshape(-1).view(torch.int32).view(*codes.shape[:-1], -1)


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Undoes ``pack``: int32 ``[..., m]`` to uint8 ``[..., m * 32 / bits]``."""
    data = words.reshape(-1).view(torch.uint8).view(*words.shape[:-1], -1)
    if bits == 3:
        return _unpack3(data)
    width = 8
    while width > bits:
        width //= 2
        mask = (1 << width) - 1
        data = torch.stack((data & mask, (data >> width) & mask), dim=-1).flatten(-2)
    return data


def _pack3(codes: torch.Tensor) -> torch.Tensor:
    """Eight codes fill three bytes exactly."""
    octets = codes.reshape(*codes.shape[:-1], -1, 8).int()
    words = octets[..., 0].clone()
    for i in range(1, 8):
        words |= octets[..., i] << (3 * i)
    data = torch.stack([(words >> shift) & 0xFF for shift in (0, 8, 16)], dim=-1)
    return data.to(torch.uint8).view(-1).view(torch.int32).view(*codes.shape[:-1], -1)


def _unpack3(data: torch.Tensor) -> torch.Tensor:
    triples = data.view(*data.shape[:-1], -1, 3).int()
    words = triples[..., 0] | (triples[..., 1] << 8) | (triples[..., 2] << 16)
    codes = torch.stack([(words >> (3 * i)) & 7 for i in range(8)], dim=-1)
    return codes.to(torch.uint8).flatten(-2)
