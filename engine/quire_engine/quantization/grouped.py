"""Weights of a few bits with a scale and a zero point for each group of inputs: w = (number - zero) x scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from quire_engine.kernels.choice import by_gpu_kernels
from quire_engine.layers.experts import stacked
from quire_engine.layers.linear import DRAWN_STD, Linear, Piece
from quire_engine.layers.shard import Packed, Shard
from quire_engine.memory_plan.quantization import Awq, Gptq
from quire_engine.quantization.blocks import multiply_in_blocks
from quire_engine.quantization.words import WORD, unpack

if TYPE_CHECKING:
    from quire_engine.kernels.gpu.experts import ExpertWeight


class GroupedLinear:
    """What the formats have in common. Once it is finished, a layer has these parameters:

    - `qweight` [out, in * bits / 32] int32: a row's numbers in words
    - `qzeros` [out * bits / 32, groups] int32: those of the rows of a word
    - `scales` [out, groups] float16, float32 where the model is: as fine as they are stored
    - `g_idx` [pieces, in] int32: the group of each input. None where groups are of neighbours, and whole.

    Ranks may cut groups: each has the scales and zeros of all groups that it holds a part of.
    """

    def __init__(self, settings: Awq | Gptq, path: str, *, bits: int, act_order: bool, zero_offset: int) -> None:
        self.group_size, self.bits, self.path = settings.group_size, bits, path
        self.act_order, self._zero_offset = act_order, zero_offset
        self._regular = False  # whether groups are of neighbours, and whole
        self.each = WORD // bits  # numbers in a word

    def held_groups(self, piece: Piece) -> slice:
        """The groups of a piece's columns; where any input may be of any group, all of them."""
        if self.act_order or self.group_size is None:
            return slice(0, self.num_groups(piece))
        return slice(piece.columns.start // self.group_size, -(-piece.columns.stop // self.group_size))

    def num_groups(self, piece: Piece) -> int:
        """Those of a piece's whole weight."""
        return 1 if self.group_size is None else -(-piece.whole[1] // self.group_size)

    def create(self, layer: Linear) -> None:
        for piece in layer.pieces:
            self._check_words(piece.rows, piece.whole[0], "rows")
            self._check_words(piece.columns, piece.whole[1], "columns")
        groups = self.held_groups(layer.pieces[0])
        num_groups = groups.stop - groups.start
        scale_dtype = torch.float32 if torch.get_default_dtype() == torch.float32 else torch.float16
        columns = layer.pieces[0].columns
        group_of = torch.arange(columns.start, columns.stop, dtype=torch.int32) // (self.group_size or columns.stop)
        tensors = {
            "qweight": torch.empty(self.shape_of_numbers(layer), dtype=torch.int32),
            "qzeros": torch.empty(layer.out_features // self.each, num_groups, dtype=torch.int32),
            "scales": torch.empty(layer.out_features, num_groups, dtype=scale_dtype),
            "g_idx": group_of.repeat(len(layer.pieces), 1),
        }
        for name, tensor in tensors.items():
            layer.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def shape_of_numbers(self, layer: Linear) -> tuple[int, int]:
        """Of `qweight` as it is loaded."""
        return layer.out_features, layer.in_features // self.each

    def _check_words(self, part: slice, whole: int, what: str) -> None:
        if whole % self.each:
            raise ValueError(f"{self.path} has {whole} {what}: with {self.bits} bits, {self.each} are packed as one")
        if part.start % self.each or part.stop % self.each:
            raise ValueError(
                f"--tensor-parallel-size gives a rank the {what} {part.start} to {part.stop} of {self.path}, of which "
                f"{self.each} are packed as one: use a smaller one"
            )

    def shards(self, layer: Linear) -> dict[tuple[str, str], Shard]:
        qzeros, scales = layer.get_parameter("qzeros"), layer.get_parameter("scales")
        by_word, by_row = Packed(rows_each=self.each, turned=True), Packed(rows_each=1, turned=True)
        result = {}
        for piece in layer.pieces:
            groups, num_groups = self.held_groups(piece), self.num_groups(piece)
            words, place, num_words = self.words(piece.rows), self.words(piece.place), piece.whole[0] // self.each
            result[piece.name, "qzeros"] = Shard(qzeros[place], (num_words, num_groups), words, groups, by_word)
            whole = (piece.whole[0], num_groups)
            result[piece.name, "scales"] = Shard(scales[piece.place], whole, piece.rows, groups, by_row)
        return result

    def words(self, numbers: slice) -> slice:
        """The words that hold some numbers."""
        return slice(numbers.start // self.each, numbers.stop // self.each)

    def draw(self, layer: Linear, generator: torch.Generator) -> None:
        layer.get_parameter("qweight").random_(-(1 << 31), 1 << 31, generator=generator)
        middle = (1 << (self.bits - 1)) - self._zero_offset
        word = sum(middle << shift for shift in range(0, WORD, self.bits))
        layer.get_parameter("qzeros").fill_(word - (1 << WORD) if word >> (WORD - 1) else word)
        # Numbers are drawn evenly: their variance is (n^2 - 1) / 12.
        layer.get_parameter("scales").fill_(DRAWN_STD / ((4**self.bits - 1) / 12) ** 0.5)

    def finish(self, layer: Linear) -> None:
        """Check what is loaded. Raises `ValueError` that names the tensor."""
        groups = self.held_groups(layer.pieces[0])
        group_of = layer.get_parameter("g_idx")
        outside = (group_of < groups.start) | (group_of >= groups.stop)
        if bool(outside.any()):
            piece = layer.names(self.path)[int(outside.any(1).nonzero()[0])]
            found = int(group_of[outside][0])
            raise ValueError(
                f"{piece}.g_idx has the group {found}: it must be from {groups.start} to {groups.stop - 1}"
            )
        group_of.sub_(groups.start)
        each = layer.in_features // (groups.stop - groups.start)
        regular = torch.arange(layer.in_features, device=group_of.device) // max(1, each)
        self._regular = layer.in_features % (groups.stop - groups.start) == 0 and bool((group_of == regular).all())
        if self._regular:
            layer.register_parameter("g_idx", None)

    def multiply(self, layer: Linear, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if by_gpu_kernels(x.device):
            return self._by_kernel(layer, x, bias)
        return multiply_in_blocks(x, self._parts(layer, x.dtype), layer.out_features, bias)

    def _by_kernel(self, layer: Linear, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """In one launch, but that pieces whose inputs are in groups of their own have one each."""
        from quire_engine.kernels.gpu.packed import PackedWeight, multiply_packed

        words, zeros, scales = (layer.get_parameter(name) for name in ("qweight", "qzeros", "scales"))
        if self._regular:
            return multiply_packed(x, PackedWeight(words, zeros, scales, None, self.bits, self._zero_offset), bias)
        results = []
        for group_of, place in zip(layer.get_parameter("g_idx"), (p.place for p in layer.pieces), strict=True):
            own = words[place], zeros[self.words(place)], scales[place], group_of
            weight = PackedWeight(*own, self.bits, self._zero_offset)
            results.append(multiply_packed(x, weight, None if bias is None else bias[place]))
        return results[0] if len(results) == 1 else torch.cat(results, dim=-1)

    def put_together(self, layers: Sequence[Linear]) -> ExpertWeight | None:
        """See `layers.experts.Joining`. None where inputs of a layer are in groups of their own."""
        if not all(isinstance(layer.method, GroupedLinear) and layer.method._regular for layer in layers):
            return None
        from quire_engine.kernels.gpu.packed import PackedWeight

        words, zeros, scales = (stacked(layers, name) for name in ("qweight", "qzeros", "scales"))
        return PackedWeight(words, zeros, scales, None, self.bits, self._zero_offset)

    def _parts(self, layer: Linear, dtype: torch.dtype) -> Iterator[tuple[slice, partial[torch.Tensor]]]:
        for i, piece in enumerate(layer.pieces):
            yield piece.place, partial(self._rows, layer, i, dtype)

    def _rows(self, layer: Linear, piece: int, dtype: torch.dtype, rows: slice) -> torch.Tensor:
        """Some rows of a piece's weight: [rows, in_features]."""
        start = layer.pieces[piece].place.start
        rows = slice(start + rows.start, start + rows.stop)
        numbers = unpack(layer.get_parameter("qweight")[rows], self.bits).to(torch.float32)
        scales = layer.get_parameter("scales")[rows].to(torch.float32)
        zeros = self._zeros(layer, rows)
        if self._regular:
            grouped = numbers.view(len(numbers), scales.shape[1], -1)
            weight = grouped.sub_(zeros[..., None]).mul_(scales[..., None]).flatten(1)
        else:
            group_of = layer.get_parameter("g_idx")[piece]
            weight = numbers.sub_(zeros[:, group_of]).mul_(scales[:, group_of])
        return weight.to(dtype)

    def _zeros(self, layer: Linear, rows: slice) -> torch.Tensor:
        """[rows, groups] uint8, the stored ones with what they lack."""
        words = layer.get_parameter("qzeros")[self.words(rows)]
        zeros = unpack(words[..., None], self.bits).transpose(1, 2).flatten(0, 1)
        return (zeros + self._zero_offset) & ((1 << self.bits) - 1) if self._zero_offset else zeros
