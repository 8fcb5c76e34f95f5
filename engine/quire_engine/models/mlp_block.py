"""The feed-forward part of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from quire_engine.layers.activation import ACTIVATIONS, gated
from quire_engine.layers.linear import ColumnLinear, RowLinear, Rows
from quire_engine.memory_plan.model_shape import ModelShape


@dataclass(frozen=True, kw_only=True)
class MLPSpec:
    """down(act(gate(x)) * up(x)), or with `gated` false down(act(up(x)))."""

    activation: str = "silu"
    gated: bool = True
    bias: bool = False

    def build(self, shape: ModelShape) -> nn.Module:
        return GatedMLP(self, shape) if self.gated else PlainMLP(self, shape)


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer, "GLU variants improve Transformer")."""

    def __init__(self, spec: MLPSpec, shape: ModelShape) -> None:
        super().__init__()
        hidden, inner = shape.hidden_size, Rows(shape.intermediate_size)
        self.gate_up_proj = ColumnLinear(hidden, {"gate_proj": inner, "up_proj": inner}, bias=spec.bias)
        self.down_proj = RowLinear(inner, hidden, bias=spec.bias)
        self.activation = ACTIVATIONS[spec.activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size] -> the same."""
        out: torch.Tensor = self.down_proj(self._inner(x))
        return out

    def partial(self, x: torch.Tensor) -> torch.Tensor:
        """What this rank adds to the result: without the sum over ranks."""
        return self.down_proj.partial(self._inner(x))

    def _inner(self, x: torch.Tensor) -> torch.Tensor:
        return gated(self.gate_up_proj(x), self.activation)


class PlainMLP(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, spec: MLPSpec, shape: ModelShape) -> None:
        super().__init__()
        inner = Rows(shape.intermediate_size)
        self.up_proj = ColumnLinear(shape.hidden_size, inner, bias=spec.bias)
        self.down_proj = RowLinear(inner, shape.hidden_size, bias=spec.bias)
        self.activation = ACTIVATIONS[spec.activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size] -> the same."""
        out: torch.Tensor = self.down_proj(self.activation(self.up_proj(x)))
        return out
