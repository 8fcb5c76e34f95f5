"""AutoGPTQ's and GPTQModel's format (Frantar et al., "GPTQ"): numbers packed along inputs."""

from __future__ import annotations

from quire_engine.layers.linear import Linear
from quire_engine.layers.shard import Packed, Shard
from quire_engine.memory_plan.quantization import Gptq
from quire_engine.quantization.grouped import GroupedLinear


class GptqLinear(GroupedLinear):
    """`qweight` [in * bits / 32, out], `qzeros` [groups, out * bits / 32], `scales` [groups, out], `g_idx` [in].

    The first version of the format lowers zero points by one before it packs them, and a 0 becomes the highest.
    """

    def __init__(self, settings: Gptq, path: str) -> None:
        super().__init__(
            settings, path, bits=settings.bits, act_order=settings.act_order, zero_offset=settings.zero_offset
        )

    def shards(self, layer: Linear) -> dict[tuple[str, str], Shard]:
        result = super().shards(layer)
        qweight, g_idx = layer.get_parameter("qweight"), layer.get_parameter("g_idx")
        by_row, same = Packed(rows_each=1, turned=True), Packed(rows_each=None, optional=not self.act_order)
        for i, piece in enumerate(layer.pieces):
            whole, columns = (piece.whole[0], piece.whole[1] // self.each), self.words(piece.columns)
            result[piece.name, "qweight"] = Shard(qweight[piece.place], whole, piece.rows, columns, by_row)
            result[piece.name, "g_idx"] = Shard(g_idx[i], piece.whole[1:], piece.columns, packed=same)
        return result
