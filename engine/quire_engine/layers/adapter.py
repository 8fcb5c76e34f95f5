"""Changes of low rank to a linear (Hu et al., 2021, LoRA), for some of the tokens of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from quire_engine.attention.context import current_context
from quire_engine.layers.linear import DRAWN_STD, Linear, LinearMethod
from quire_engine.layers.shard import Shard

DOWN, UP = "adapter_down", "adapter_up"
"""What the tensors are called here: [rank, in_features], of the layer's first piece, and [out_features, rank]."""


def low_rank(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """(x D^T) U^T: [n, in_features] by [rank, in_features] and [out, rank] -> [n, out]."""
    return nn.functional.linear(nn.functional.linear(x, down), up)


class Adapted:
    """y = x W^T, and for tokens that are adapted + scale (x D^T) U^T: the layer's own method, and D and U beside it.

    The pieces of a layer have one D, as where the checkpoint stores them as one.
    """

    def __init__(self, method: LinearMethod, rank: int, scale: float) -> None:
        self.method, self.rank, self.scale = method, rank, scale

    def create(self, layer: Linear) -> None:
        self.method.create(layer)
        # They have the type of hidden states, whatever type the weights have.
        layer.register_parameter(DOWN, nn.Parameter(torch.empty(self.rank, layer.in_features), requires_grad=False))
        layer.register_parameter(UP, nn.Parameter(torch.empty(layer.out_features, self.rank), requires_grad=False))

    def shards(self, layer: Linear) -> dict[tuple[str, str], Shard]:
        first, (down, up) = layer.pieces[0], self._tensors(layer)
        result = self.method.shards(layer)
        result[first.name, DOWN] = Shard(down, (self.rank, first.whole[1]), columns=first.columns)
        for piece in layer.pieces:
            result[piece.name, UP] = Shard(up[piece.place], (piece.whole[0], self.rank), piece.rows)
        return result

    def draw(self, layer: Linear, generator: torch.Generator) -> None:
        self.method.draw(layer, generator)
        for tensor in self._tensors(layer):
            tensor.normal_(0.0, DRAWN_STD, generator=generator)

    def finish(self, layer: Linear) -> None:
        self.method.finish(layer)

    def multiply(self, layer: Linear, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        y = self.method.multiply(layer, x, bias)
        adapted = current_context().adapted
        if adapted is None:
            return y
        down, up = self._tensors(layer)
        rows = x[adapted]
        return y.index_add(0, adapted, low_rank(rows, down, up), alpha=self.scale)

    def _tensors(self, layer: Linear) -> tuple[torch.Tensor, torch.Tensor]:
        return layer.get_parameter(DOWN), layer.get_parameter(UP)


@dataclass(frozen=True)
class Change:
    """What one adapter adds to some of a layer's outputs."""

    place: slice  # of the layer's outputs
    down: torch.Tensor  # [rank, in_features]
    up: torch.Tensor  # [outputs of `place`, rank], with the scale


class Adaptable:
    """The layer's own method, and beside it the changes of adapters, by their numbers, each for its own tokens."""

    def __init__(self, method: LinearMethod) -> None:
        self.method = method
        self.changes: dict[int, list[Change]] = {}

    def create(self, layer: Linear) -> None:
        self.method.create(layer)

    def shards(self, layer: Linear) -> dict[tuple[str, str], Shard]:
        return self.method.shards(layer)

    def draw(self, layer: Linear, generator: torch.Generator) -> None:
        self.method.draw(layer, generator)

    def finish(self, layer: Linear) -> None:
        self.method.finish(layer)

    def multiply(self, layer: Linear, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        y = self.method.multiply(layer, x, bias)
        if not self.changes:
            return y
        for number, rows in current_context().adapters:
            changes = self.changes.get(number)
            if changes is None:
                continue
            own = x[rows]
            for change in changes:
                y[:, change.place].index_add_(0, rows, low_rank(own, change.down, change.up))
        return y
