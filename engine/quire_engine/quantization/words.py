"""Small numbers without a sign, packed into words of 32 bits: the first in the lowest bits."""

from __future__ import annotations

import torch

WORD = 32


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """[..., n] int32 -> [..., n * 32 / bits] uint8. `bits` are 2, 4 or 8."""
    data = words.contiguous().view(torch.uint8)
    if bits == 8:
        return data
    mask = (1 << bits) - 1
    return torch.stack([(data >> shift) & mask for shift in range(0, 8, bits)], dim=-1).flatten(-2)


def pack(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """[..., n * 32 / bits] uint8 -> [..., n] int32."""
    each = 8 // bits
    parts = numbers.view(*numbers.shape[:-1], -1, each).unbind(-1)
    data: torch.Tensor = parts[0].clone()
    for i, part in enumerate(parts[1:], start=1):
        data |= part << (bits * i)
    return data.contiguous().view(torch.int32)
