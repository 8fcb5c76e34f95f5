"""Multiplication by a weight that exists in full only a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.nn import functional

# Elements of a block of rows: what is dequantized is read again while it is in the CPU's cache.
_BLOCK = 1 << 20
# Rows of a block are a multiple of this, so that no block begins within a word of packed numbers.
_ROWS = 32


def multiply_in_blocks(
    x: torch.Tensor,
    parts: Iterable[tuple[slice, Callable[[slice], torch.Tensor]]],
    out_features: int,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """x [..., in_features] times a weight [out_features, in_features]: [..., out_features].

    `parts` are places in the output, and for each what gives rows of the weight, counted from the part's first, in
    x's dtype.
    """
    out = x.new_empty(*x.shape[:-1], out_features)
    step = max(_ROWS, _BLOCK // x.shape[-1] // _ROWS * _ROWS)
    for place, rows_of in parts:
        size = place.stop - place.start
        for first in range(0, size, step):
            rows = slice(first, min(first + step, size))
            outputs = slice(place.start + rows.start, place.start + rows.stop)
            out[..., outputs] = functional.linear(x, rows_of(rows), None if bias is None else bias[outputs])
    return out
