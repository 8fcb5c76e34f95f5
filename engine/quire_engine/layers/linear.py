"""Linear layers: whole ones, those that ranks share by output or by input, and several stacked into one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from quire_engine.distributed.ranks import TensorRanks, tensor_ranks
from quire_engine.kernels.cpu import empty_weight, linear
from quire_engine.layers.shard import Shard

DRAWN_STD = 0.02


@dataclass(frozen=True)
class Rows:
    """The outputs of one part of a linear: `units` (attention heads), which ranks hold whole, of `unit` rows each."""

    units: int
    unit: int = 1

    def share(self, ranks: TensorRanks) -> slice:
        """The rows that one rank holds."""
        units = ranks.share(self.units)
        return slice(units.start * self.unit, units.stop * self.unit)


@dataclass(frozen=True)
class Piece:
    """One of the checkpoint's weights [out, in] within a layer: this rank's part, and where in the layer it is."""

    name: str  # "" where it is the layer's only one and has the layer's name
    whole: tuple[int, int]  # shape of the checkpoint's weight
    rows: slice  # of the checkpoint's weight
    columns: slice  # of the checkpoint's weight
    place: slice  # of the layer's outputs


class LinearMethod(Protocol):
    """How a layer's weights are kept and multiplied: as they are, or quantized."""

    def create(self, layer: Linear) -> None:
        """Register the parameters of `layer`, for its `in_features`, `out_features` and `pieces`: all but the bias."""
        ...

    def shards(self, layer: Linear) -> dict[tuple[str, str], Shard]:
        """Where the checkpoint's tensors go, by (name of the piece, name of the tensor, such as "weight")."""
        ...

    def draw(self, layer: Linear, generator: torch.Generator) -> None:
        """Fill the parameters with random weights of mean 0 and standard deviation `DRAWN_STD`, as if loaded."""
        ...

    def finish(self, layer: Linear) -> None:
        """Bring the parameters into the form that `multiply` wants, once they are loaded."""
        ...

    def multiply(self, layer: Linear, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """[..., in_features] -> [..., out_features]."""
        ...


@runtime_checkable
class ByKernel(Protocol):
    """A `LinearMethod` whose product the library of kernels for CPUs has."""

    def operands(self, layer: Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weight [out_features, in_features], and where that is int8 its scale [out_features, 1] float32."""
        ...


class Unquantized:
    """One weight [out_features, in_features] of the model's dtype."""

    def create(self, layer: Linear) -> None:
        layer.weight = nn.Parameter(empty_weight(layer.out_features, layer.in_features), requires_grad=False)

    def shards(self, layer: Linear) -> dict[tuple[str, str], Shard]:
        return {
            (piece.name, "weight"): Shard(layer.weight[piece.place], piece.whole, piece.rows, piece.columns)
            for piece in layer.pieces
        }

    def draw(self, layer: Linear, generator: torch.Generator) -> None:
        weight = layer.weight
        if not weight.is_contiguous():  # the same numbers however rows lie
            weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
        weight.normal_(0.0, DRAWN_STD, generator=generator)
        if weight is not layer.weight:
            layer.weight.copy_(weight)

    def finish(self, layer: Linear) -> None:
        pass

    def multiply(self, layer: Linear, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return linear(x, layer.weight, bias)

    def operands(self, layer: Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
        return layer.weight, None


class Linear(nn.Module):
    """y = x W^T + b, whole on every rank. Its weights come with `create_weights`."""

    weight: torch.Tensor
    takes_batch = True  # its inputs are the batch's tokens, in the batch's order

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        whole = slice(0, out_features)
        self._shape(in_features, [Piece("", (out_features, in_features), whole, slice(0, in_features), whole)], bias)

    def _shape(self, in_features: int, pieces: list[Piece], bias: bool) -> None:
        self.in_features, self.pieces = in_features, pieces
        self.out_features = pieces[-1].place.stop
        self.has_bias = bias
        self.bias: nn.Parameter | None = None
        self.method: LinearMethod = Unquantized()

    def create(self, method: LinearMethod) -> None:
        """Allocate the parameters, of torch's default dtype and device."""
        self.method = method
        method.create(self)
        if self.has_bias:
            self.bias = nn.Parameter(torch.empty(self.out_features), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features]."""
        return self.method.multiply(self, x, self.bias)

    def names(self, path: str) -> list[str]:
        """What the checkpoint calls the pieces of the layer at `path`."""
        parent, _, own = path.rpartition(".")
        prefix = f"{parent}." if parent else ""
        return [prefix + (piece.name or own) for piece in self.pieces]

    def shards(self, path: str) -> dict[str, Shard]:
        names = {piece.name: name for piece, name in zip(self.pieces, self.names(path), strict=True)}
        result = {f"{names[piece]}.{tensor}": shard for (piece, tensor), shard in self.method.shards(self).items()}
        if self.bias is not None:
            biases = {p.name: Shard(self.bias[p.place], p.whole[:1], p.rows) for p in self.pieces}
            result |= {f"{names[piece]}.bias": shard for piece, shard in biases.items()}
        return result


class ColumnLinear(Linear):
    """A linear whose outputs the ranks share, or, as `parts` by the checkpoint's names, several of one input."""

    def __init__(self, in_features: int, parts: Rows | Mapping[str, Rows], *, bias: bool = False) -> None:
        nn.Module.__init__(self)
        ranks = tensor_ranks()
        pieces, start = [], 0
        for name, part in ({"": parts} if isinstance(parts, Rows) else parts).items():
            rows = part.share(ranks)
            size = rows.stop - rows.start
            shape = (part.units * part.unit, in_features)
            pieces.append(Piece(name, shape, rows, slice(0, in_features), slice(start, start + size)))
            start += size
        self._shape(in_features, pieces, bias)

    def split(self, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """This rank's outputs of each part."""
        return torch.split(y, [piece.place.stop - piece.place.start for piece in self.pieces], dim=-1)


class RowLinear(Linear):
    """A linear whose inputs the ranks share, as a `ColumnLinear` of `columns` left them. It sums the ranks' results."""

    def __init__(self, columns: Rows, out_features: int, *, bias: bool = False) -> None:
        nn.Module.__init__(self)
        self.ranks = tensor_ranks()
        if columns.units % self.ranks.size:
            columns.share(self.ranks)  # says what does not divide, or finds inputs that several ranks hold
            raise ValueError(
                f"--tensor-parallel-size is {self.ranks.size}: it must divide the {columns.units} heads or columns"
            )
        mine, whole = columns.share(self.ranks), slice(0, out_features)
        shape = (out_features, columns.units * columns.unit)
        self._shape(mine.stop - mine.start, [Piece("", shape, whole, mine, whole)], bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's [..., in_features] -> [..., out_features], the same on every rank."""
        if self.ranks.size == 1:
            return self.method.multiply(self, x, self.bias)
        y = self.ranks.all_reduce(self.partial(x))
        return y if self.bias is None else y + self.bias

    def partial(self, x: torch.Tensor) -> torch.Tensor:
        """What this rank adds to the sum: for a layer whose result is added to others before the ranks' are."""
        return self.method.multiply(self, x, None)


def create_weights(model: nn.Module, method_for: Callable[[str, Linear], LinearMethod] | None = None) -> None:
    """Give every linear in `model` its parameters, by the method for its path: plain ones, unless told otherwise."""
    plain = Unquantized()
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            module.create(method_for(path, module) if method_for is not None else plain)


@runtime_checkable
class Finishing(Protocol):
    """A module that takes something out of the linears in it."""

    def finish(self) -> None:
        """Called once those have their final form."""
        ...


def finish_weights(model: nn.Module) -> None:
    """Have every linear's method bring what was loaded into its final form."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.method.finish(module)
    for module in model.modules():
        if isinstance(module, Finishing):
            module.finish()
