"""Linear layers, one weight or several stacked ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import linear


class Linear(nn.Module):
    """y = x W^T + b, with W [out_features, in_features]."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features]."""
        return linear(x, self.weight, self.bias)


class FusedLinear(Linear):
    """Linears of one input as one multiplication. `parts` maps the checkpoint's names to out_features, in order."""

    def __init__(self, in_features: int, parts: Mapping[str, int], *, bias: bool = False) -> None:
        super().__init__(in_features, sum(parts.values()), bias=bias)
        self.parts = dict(parts)

    def rows(self) -> dict[str, slice]:
        """The rows of the weight that belong to each part."""
        result, start = {}, 0
        for name, size in self.parts.items():
            result[name] = slice(start, start + size)
            start += size
        return result
