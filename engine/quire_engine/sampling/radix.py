"""Where the largest values of a row add up to something, without sorting: by the digits of their bit patterns.

Floats that are not negative are ordered as their bits are, read as integers. So the first digit of the value looked for
is found by summing the row by first digits, and the second among the values that begin with that (radix select: Alabi,
Blanchard, Gordon, Steinbach: "Fast k-Selection Algorithms for Graphics Processing Units", 2012, for counts).
"""

from __future__ import annotations

import torch

_BITS = 15
_DIGITS = 1 << _BITS  # of each of the two digits: the bits of numbers below 2 fit into 30


def where_sums_reach(values: torch.Tensor, weights: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The greatest value t of each row such that the `weights` of all values from t on sum to at least `wanted`.

    `values` [rows, columns] float32 from 0 to below 2, `weights` [rows, columns] float64, `wanted` [rows] float64:
    [rows] float32. The least value, or less, where all are too little. Each row's result depends on that row alone.
    """
    bits = values.view(torch.int32)
    first = bits >> _BITS
    high, above = _digit(first, weights, wanted)
    of_second = torch.where(first == high[:, None], weights, 0.0)
    low, _ = _digit(bits & (_DIGITS - 1), of_second, wanted - above)
    return ((high << _BITS) | low).to(torch.int32).view(torch.float32)


def _digit(digits: torch.Tensor, weights: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The digit at which the weights, summed from the greatest on, reach `wanted`, and their sum before it."""
    rows = digits.shape[0]
    bins = digits + torch.arange(rows, dtype=torch.int32, device=digits.device)[:, None] * _DIGITS
    by_digit = torch.bincount(bins.flatten(), weights.flatten(), minlength=rows * _DIGITS).view(rows, _DIGITS)
    sums = by_digit.flip(-1).cumsum(-1)
    index = (sums < wanted[:, None]).sum(-1).clamp_max(_DIGITS - 1)
    before = sums.gather(-1, (index - 1).clamp_min(0)[:, None]).squeeze(-1)
    return _DIGITS - 1 - index, torch.where(index > 0, before, 0.0)
