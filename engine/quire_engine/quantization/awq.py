"""AutoAWQ's format, called GEMM (Lin et al., "AWQ"): 4 bits, packed along outputs."""

from __future__ import annotations

import torch
from torch import nn

from quire_engine.layers.linear import Linear
from quire_engine.layers.shard import Packed, Shard
from quire_engine.memory_plan.quantization import Awq
from quire_engine.quantization.grouped import GroupedLinear
from quire_engine.quantization.words import pack, unpack

_BITS = 4
# Which of a word's 8 outputs is where in it: 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits on.
_PLACE_OF_OUTPUT = [0, 4, 1, 5, 2, 6, 3, 7]
# Words of outputs that are packed anew at once.
_AT_ONCE = 16


class AwqLinear(GroupedLinear):
    """`qweight` [in, out / 8], `qzeros` [groups, out / 8], `scales` [groups, out]."""

    def __init__(self, settings: Awq, path: str) -> None:
        super().__init__(settings, path, bits=_BITS, act_order=False, zero_offset=0)

    def shape_of_numbers(self, layer: Linear) -> tuple[int, int]:
        return layer.out_features // self.each, layer.in_features

    def shards(self, layer: Linear) -> dict[tuple[str, str], Shard]:
        result = super().shards(layer)
        qweight, packed = layer.get_parameter("qweight"), Packed(rows_each=self.each, turned=True)
        for piece in layer.pieces:
            place, whole = self.words(piece.place), (piece.whole[0] // self.each, piece.whole[1])
            rows = self.words(piece.rows)
            result[piece.name, "qweight"] = Shard(qweight[place], whole, rows, piece.columns, packed)
        return result

    def finish(self, layer: Linear) -> None:
        """Pack along inputs, so that an output's numbers lie together."""
        super().finish(layer)
        layer.get_parameter("qzeros").copy_(pack(_in_order(layer.get_parameter("qzeros")), _BITS).squeeze(-1))
        stored = layer.get_parameter("qweight")
        qweight = stored.new_empty(layer.out_features, layer.in_features // self.each)
        for first in range(0, len(stored), _AT_ONCE):
            rows = _in_order(stored[first : first + _AT_ONCE]).transpose(1, 2).flatten(0, 1)
            start = first * self.each
            qweight[start : start + len(rows)] = pack(rows, _BITS)
        layer.register_parameter("qweight", nn.Parameter(qweight, requires_grad=False))


def _in_order(words: torch.Tensor) -> torch.Tensor:
    """The numbers of words [..., n], in the order of the outputs: [..., n, 8] uint8."""
    return unpack(words[..., None], _BITS)[..., _PLACE_OF_OUTPUT]
