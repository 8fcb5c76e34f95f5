"""Weights of 8 bits, e4m3 (Micikevicius et al., "FP8 Formats for Deep Learning"), with float32 scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from quire_engine.kernels.choice import by_gpu_kernels
from quire_engine.layers.experts import stacked
from quire_engine.layers.linear import DRAWN_STD, Linear, Piece
from quire_engine.layers.shard import Packed, Shard
from quire_engine.memory_plan.quantization import Fp8
from quire_engine.quantization.blocks import multiply_in_blocks

if TYPE_CHECKING:
    from quire_engine.kernels.gpu.experts import ExpertWeight

FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FP8).max
_FEWEST_INPUTS = 32  # that tensor cores multiply in FP8 at once


class Fp8Linear:
    """As the checkpoint has it: `weight` [out, in], and `weight_scale` [scales, blocks of columns] under it.

    A scale may be for the whole weight of a piece, for a row, or for a block. Ranks may cut blocks: each has the
    scales of all blocks that it holds a part of. Activations keep their type, or are rounded by the range that they
    have: scales for them, which were measured while quantizing, are of no use.
    """

    dtype = FP8

    def __init__(self, settings: Fp8) -> None:
        self.settings = settings
        self._places: list[slice] = []  # in weight_scale, of each of the layer's pieces
        self._scale_rows: torch.Tensor | None = None  # [out] int32: each output's in weight_scale, for a kernel
        self._scales: torch.Tensor | None = None  # [out, 1]: each output's scale, for torch's product of FP8

    def create(self, layer: Linear) -> None:
        rows, columns = self.settings.block
        start = 0
        self._places = []
        for piece in layer.pieces:
            held = _blocks(piece.rows, rows)
            self._places.append(slice(start, start + held.stop - held.start))
            start = self._places[-1].stop
        held = _blocks(layer.pieces[0].columns, columns)
        weight = torch.empty(layer.out_features, layer.in_features, dtype=self.dtype)
        scale = torch.empty(start, held.stop - held.start, dtype=torch.float32)
        layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        layer.register_parameter("weight_scale", nn.Parameter(scale, requires_grad=False))

    def shards(self, layer: Linear) -> dict[tuple[str, str], Shard]:
        scale, (rows, columns) = layer.get_parameter("weight_scale"), self.settings.block
        packed = Packed(rows_each=rows)
        result = {}
        for piece, place in zip(layer.pieces, self._places, strict=True):
            weight = layer.weight[piece.place]
            result[piece.name, "weight"] = Shard(weight, piece.whole, piece.rows, piece.columns, Packed(rows_each=1))
            whole = (_count(piece.whole[0], rows), _count(piece.whole[1], columns))
            held = _blocks(piece.rows, rows), _blocks(piece.columns, columns)
            result[piece.name, self.settings.scale] = Shard(scale[place], whole, *held, packed)
        return result

    def draw(self, layer: Linear, generator: torch.Generator) -> None:
        for piece in layer.pieces:
            weight = layer.weight[piece.place]
            weight.copy_(torch.empty_like(weight, dtype=torch.float32).normal_(generator=generator))
        layer.get_parameter("weight_scale").fill_(DRAWN_STD)

    def finish(self, layer: Linear) -> None:
        """Have each output's scale at hand where products of FP8 with FP8 take them."""
        if not by_gpu_kernels(layer.weight.device) or self.dtype != FP8:
            return
        from quire_engine.kernels.gpu.fp8 import ALIGNED, inputs_at_once

        (high, wide), scale = self.settings.block, layer.get_parameter("weight_scale")
        if wide is not None:
            if inputs_at_once(wide, layer.pieces[0].columns.start % wide) >= _FEWEST_INPUTS:
                self._scale_rows = self._rows_of_scales(layer, high, scale.device).to(torch.int32)
        elif layer.in_features % ALIGNED == layer.out_features % ALIGNED == 0:
            self._scales = scale if high == 1 else scale[self._rows_of_scales(layer, high, scale.device)]

    def _rows_of_scales(self, layer: Linear, high: int | None, device: torch.device) -> torch.Tensor:
        """Each output's row in weight_scale, [out] int64."""
        rows = []
        for piece, place in zip(layer.pieces, self._places, strict=True):
            size, block = piece.place.stop - piece.place.start, high or piece.whole[0]
            start = 0 if high is None else piece.rows.start
            rows.append(_block_of(slice(0, size), start, block, device) + place.start)
        return torch.cat(rows)

    def multiply(self, layer: Linear, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if x.dtype == torch.bfloat16 and not (self._scales is None and self._scale_rows is None):
            return self._by_fp8(layer, x, bias)
        return multiply_in_blocks(x, self._parts(layer, x.dtype), layer.out_features, bias)

    def _by_fp8(self, layer: Linear, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """With activations rounded to FP8 too."""
        from quire_engine.kernels.gpu.fp8 import multiply_blocks, multiply_rows

        if self._scales is not None:
            return multiply_rows(x, layer.weight, self._scales, bias)
        assert self._scale_rows is not None
        wide = self.settings.block[1]
        assert wide is not None
        before = layer.pieces[0].columns.start % wide
        scale = layer.get_parameter("weight_scale")
        return multiply_blocks(x, layer.weight, scale, self._scale_rows, wide, before, bias)

    def put_together(self, layers: Sequence[Linear]) -> ExpertWeight | None:
        """See `layers.experts.Joining`."""
        from quire_engine.kernels.gpu.fp8 import ScaledWeight

        first, (high, wide) = layers[0], self.settings.block
        rows = self._rows_of_scales(first, high, first.weight.device).to(torch.int32)
        before = 0 if wide is None else first.pieces[0].columns.start % wide
        numbers, scales = stacked(layers, "weight"), stacked(layers, "weight_scale")
        return ScaledWeight(numbers, scales, rows, wide or first.in_features, before)

    def _parts(self, layer: Linear, dtype: torch.dtype) -> Iterator[tuple[slice, partial[torch.Tensor]]]:
        for piece, place in zip(layer.pieces, self._places, strict=True):
            yield piece.place, partial(self._rows, layer, piece, place, dtype)

    def _rows(self, layer: Linear, piece: Piece, place: slice, dtype: torch.dtype, rows: slice) -> torch.Tensor:
        """Some rows of a piece's weight: [rows, in_features]."""
        scale, (high, wide) = layer.get_parameter("weight_scale")[place], self.settings.block
        if high is not None:
            scale = scale[_block_of(rows, piece.rows.start, high, scale.device)]
        if wide is not None:
            scale = scale[:, _block_of(slice(0, layer.in_features), piece.columns.start, wide, scale.device)]
        weight = layer.weight[piece.place][rows]
        return (weight.to(torch.float32) * scale).to(dtype)


def _blocks(part: slice, block: int | None) -> slice:
    """The blocks that a part of a dimension touches, of `block` elements each; None stands for all of them."""
    return slice(0, 1) if block is None else slice(part.start // block, -(-part.stop // block))


def _count(size: int, block: int | None) -> int:
    return 1 if block is None else -(-size // block)


def _block_of(part: slice, start: int, block: int, device: torch.device) -> torch.Tensor:
    """For each element of a part, its block, counted from the one that `start`, the part's origin, lies in."""
    return torch.arange(part.start + start, part.stop + start, device=device) // block - start // block


@dataclass(frozen=True)
class Rounding(Shard):
    """Float rows on their way to numbers of `target`'s type, up to `largest`, times a scale for each row."""

    scale: torch.Tensor = field(kw_only=True)  # [rows, 1]
    largest: float = _LARGEST

    @property
    def dtype(self) -> torch.dtype:
        return self.scale.dtype

    @property
    def place(self) -> None:
        return None

    def fill(self, part: torch.Tensor) -> None:
        weight = part.to(self.scale)
        tiny = torch.finfo(torch.float32).tiny
        range_of_rows = weight.abs().amax(dim=1, keepdim=True)
        if not bool(range_of_rows.isfinite().all()):
            raise ValueError(
                "holds an infinity or NaN, which cannot be rounded to 8 bits: leave --quantization unset, or mend it"
            )
        self.scale.copy_(range_of_rows.clamp_min_(tiny) / self.largest)
        numbers = (weight / self.scale).clamp_(-self.largest, self.largest)
        self.target.copy_(numbers if self.target.dtype.is_floating_point else numbers.round_())


class Fp8WhileLoading(Fp8Linear):
    """Weights that the checkpoint has as floats, and that are rounded to FP8 as they come: a scale for each row."""

    largest = _LARGEST

    def __init__(self) -> None:
        super().__init__(Fp8(block=(1, None), scale="weight_scale"))

    def shards(self, layer: Linear) -> dict[tuple[str, str], Shard]:
        scale = layer.get_parameter("weight_scale")
        return {
            (piece.name, "weight"): Rounding(
                layer.weight[piece.place],
                piece.whole,
                piece.rows,
                piece.columns,
                scale=scale[piece.place],
                largest=self.largest,
            )
            for piece in layer.pieces
        }
