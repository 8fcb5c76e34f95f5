"""The middle of a gated MLP: act(gate) * up in one pass."""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.arithmetic import rounded

Gate = Literal["silu", "gelu", "gelu_tanh"]


def gate_and_multiply(both: torch.Tensor, gate: Gate) -> torch.Tensor:
    """[..., 2 * size] -> [..., size]: the activation of the first half, rounded, times the second."""
    both = both.contiguous()
    size = both.shape[-1] // 2
    out = both.new_empty(*both.shape[:-1], size)
    block = min(1024, triton.next_power_of_2(size))
    grid = (out.numel() // size, triton.cdiv(size, block))
    _gate_and_multiply[grid](both, out, SIZE=size, BLOCK=block, GATE=gate, num_warps=4)
    return out


@triton.jit
def _gate_and_multiply(both, out, SIZE: tl.constexpr, BLOCK: tl.constexpr, GATE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < SIZE
    dtype = out.dtype.element_ty
    x = tl.load(both + row * 2 * SIZE + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * SIZE + SIZE + columns, mask=inside, other=0.0).to(tl.float32)
    if GATE == "silu":
        x = x / (1.0 + tl.exp(-x))
    elif GATE == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        # 0.5 * (1 + tanh(y)) = 1 / (1 + exp(-2y))
        y = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        x = x / (1.0 + tl.exp(-2.0 * y))
    tl.store(out + row * SIZE + columns, rounded(rounded(x, dtype).to(tl.float32) * up, dtype), mask=inside)
