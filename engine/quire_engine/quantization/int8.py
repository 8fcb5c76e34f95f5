"""Weights of 8 bits, integers, with a float32 scale for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from quire_engine.kernels import cpu
from quire_engine.kernels.choice import by_gpu_kernels
from quire_engine.layers.experts import stacked
from quire_engine.layers.linear import DRAWN_STD, Linear
from quire_engine.quantization.fp8 import Fp8WhileLoading

if TYPE_CHECKING:
    from quire_engine.kernels.gpu.experts import ExpertWeight

_LARGEST = 127
_DRAWN = 30.0  # standard deviation of drawn numbers: one in 40,000 is cut off


class Int8WhileLoading(Fp8WhileLoading):
    """Weights that the checkpoint has as floats, and that are rounded to integers as they come."""

    dtype = torch.int8
    largest = float(_LARGEST)

    def draw(self, layer: Linear, generator: torch.Generator) -> None:
        numbers = torch.empty_like(layer.weight, dtype=torch.float32).normal_(0.0, _DRAWN, generator=generator)
        layer.weight.copy_(numbers.round_().clamp_(-_LARGEST, _LARGEST))
        layer.get_parameter("weight_scale").fill_(DRAWN_STD / _DRAWN)

    def multiply(self, layer: Linear, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        library = cpu.library_for(x) if x.dtype == torch.bfloat16 else None
        if library is not None and library.takes_int8(layer.in_features):
            return library.linear_int8(x, layer.weight, layer.get_parameter("weight_scale"), bias)
        if by_gpu_kernels(x.device) and layer.in_features % 4 == 0:
            from quire_engine.kernels.gpu.packed import PackedWeight, multiply_packed

            return multiply_packed(x, PackedWeight.of_bytes(layer.weight, layer.get_parameter("weight_scale")), bias)
        return super().multiply(layer, x, bias)

    def put_together(self, layers: Sequence[Linear]) -> ExpertWeight | None:
        if layers[0].in_features % 4:
            return None
        from quire_engine.kernels.gpu.packed import PackedWeight

        return PackedWeight.of_bytes(stacked(layers, "weight"), stacked(layers, "weight_scale"))

    def operands(self, layer: Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
        return layer.weight, layer.get_parameter("weight_scale")
