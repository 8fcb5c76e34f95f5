"""Products of FP8 (e4m3) with FP8: activations are rounded to it a token at a time, with the range that they have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.arithmetic import product, rounded
from quire_engine.kernels.gpu.shares import SMALL, cut, join

FP8 = torch.float8_e4m3fn
LARGEST: tl.constexpr = tl.constexpr(448.0)
_TINY: tl.constexpr = tl.constexpr(1.1754943508222875e-38)
ALIGNED = 16
"""What torch's product of FP8 wants inputs and outputs to be multiples of."""


@dataclass(frozen=True, slots=True)
class ScaledWeight:
    """That of experts: w = number * scale, as float32; rounded to the type of what it is multiplied with.

    Each output has the row of `scales` that `scale_row` says, and each `block` inputs a column, where of the first one
    `before` inputs are missing.
    """

    numbers: torch.Tensor  # [num_experts, outputs, inputs] e4m3
    scales: torch.Tensor  # [num_experts, scales, blocks of inputs] float32
    scale_row: torch.Tensor  # [outputs] int32
    block: int
    before: int = 0

    def steps(self, most: int) -> tuple[int, bool]:
        """How many inputs a kernel takes at once, a power of two from 32 to `most`, and whether of one block each."""
        if self.scales.shape[2] == 1:
            return most, True
        at_once = min(most, inputs_at_once(self.block, self.before))
        return (at_once, True) if at_once >= 32 else (most, False)


def round_tokens(x: torch.Tensor, group: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """x [rows, inputs] as e4m3, and what it is to be multiplied by: float32 [rows, groups of inputs].

    Of each `group` neighbours, or of all inputs, the largest is 448.
    """
    x = x.contiguous()
    rows, inputs = x.shape
    group = group or inputs
    groups = triton.cdiv(inputs, group)
    numbers, scales = torch.empty_like(x, dtype=FP8), x.new_empty(rows, groups, dtype=torch.float32)
    if rows:
        block = triton.next_power_of_2(group)
        _round_tokens[(rows, groups)](
            x, numbers, scales, inputs, GROUP=group, BLOCK=block, num_warps=max(1, min(16, block // 512))
        )
    return numbers, scales


def multiply_rows(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """x [..., inputs] bfloat16 by weight [outputs, inputs] e4m3 times scale [outputs, 1] float32: [..., outputs].

    The product is torch's, by cuBLASLt or CUTLASS. Inputs and outputs are multiples of `ALIGNED`.
    """
    numbers, scales = round_tokens(x.flatten(0, -2))
    out = x.new_empty(len(numbers), len(weight))
    if len(numbers):
        out = torch._scaled_mm(
            numbers, weight.t(), scales, scale.t(), bias=bias, out_dtype=x.dtype, use_fast_accum=True
        )
    return out.view(*x.shape[:-1], len(weight))


def multiply_blocks(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    scale_row: torch.Tensor,
    block: int,
    before: int,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """x [..., inputs] by weight [outputs, inputs] e4m3, whose scales are those of blocks: [..., outputs].

    Of `scale` [scales, blocks of inputs] float32 each output has the row that `scale_row` [outputs] int32 says, and
    each `block` inputs a column, where of the first one `before` inputs are missing. Activations are rounded by as many
    inputs as `inputs_at_once` says. Sums are float32, of products of that many.
    """
    (outputs, inputs), rows = weight.shape, x.numel() // x.shape[-1]
    out = x.new_empty(rows, outputs)
    if not rows:
        return out.view(*x.shape[:-1], outputs)
    block_k = inputs_at_once(block, before)
    numbers, scales = round_tokens(x.view(rows, inputs) if x.is_contiguous() else x.reshape(rows, inputs), block_k)
    block_m, block_n = min(128, max(16, triton.next_power_of_2(rows))), 64 if rows <= SMALL else 128
    tiles = cut(out, inputs, (block_m, block_n, block_k))
    _multiply_blocks[tiles.grid](
        numbers,
        scales,
        weight,
        scale,
        scale_row,
        out if bias is None else bias,
        tiles.results,
        rows,
        outputs,
        inputs,
        scale.shape[1],
        before,
        tiles.inputs_each,
        BLOCK=block,
        HAS_BIAS=bias is not None and tiles.shares == 1,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=4 if rows <= SMALL else 8,
        num_stages=3,
    )
    join(tiles, bias, out)
    return out.view(*x.shape[:-1], outputs)


def inputs_at_once(block: int, before: int) -> int:
    """So many inputs, a power of two, that lie within one block, where `before` of the first one are missing."""
    return min(128, (block | before) & -(block | before))


@triton.jit
def scaled(
    w_rows,  # [BLOCK_N, 1] pointers, as the others are [BLOCK_N]
    scale_rows,
    n_there,
    first,
    inputs,
    before,
    dtype: tl.constexpr,
    BLOCK: tl.constexpr,
    OF_TILE: tl.constexpr,  # whether all inputs of a tile are of one block
    BLOCK_K: tl.constexpr,
):
    """A tile of a `ScaledWeight` as `dtype`: some outputs by the inputs from `first` on, [BLOCK_N, BLOCK_K]."""
    k = first + tl.arange(0, BLOCK_K)
    there = n_there[:, None] & (k < inputs)[None, :]
    numbers = tl.load(w_rows + k[None, :], mask=there, other=0.0).to(tl.float32)
    if OF_TILE:
        scale = tl.load(scale_rows + (first + before) // BLOCK, mask=n_there, other=0.0)[:, None]
    else:
        scale = tl.load(scale_rows[:, None] + ((k + before) // BLOCK)[None, :], mask=there, other=0.0)
    return rounded(numbers * scale, dtype)


@triton.jit
def _round_tokens(x_all, numbers, scales, inputs, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    within = tl.arange(0, BLOCK)
    k = group * GROUP + within
    there = (within < GROUP) & (k < inputs)
    x = tl.load(x_all + row * inputs + k, mask=there, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), axis=0), _TINY * LARGEST) / LARGEST
    tl.store(scales + row * tl.num_programs(1) + group, scale)
    tl.store(numbers + row * inputs + k, rounded(x / scale, numbers.dtype.element_ty), mask=there)


@triton.jit
def _multiply_blocks(
    x_all,
    x_scales,
    weights,
    w_scales,
    scale_row,
    bias,
    out,
    rows,
    outputs,
    inputs,
    w_blocks,
    before,
    inputs_each,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_there, n_there = m < rows, n < outputs
    x_rows = x_all + (m.to(tl.int64) * inputs)[None, :]
    w_rows = weights + (n.to(tl.int64) * inputs)[:, None]
    x_scale_rows = x_scales + m * tl.cdiv(inputs, BLOCK_K)
    w_scale_rows = w_scales + tl.load(scale_row + n, mask=n_there, other=0) * w_blocks
    begin = tl.program_id(2) * inputs_each
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for first in range(begin, tl.minimum(begin + inputs_each, inputs), BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        k_there = k < inputs
        weight = tl.load(w_rows + k[None, :], mask=n_there[:, None] & k_there[None, :], other=0.0)
        x = tl.load(x_rows + k[:, None], mask=k_there[:, None] & m_there[None, :], other=0.0)
        x_scale = tl.load(x_scale_rows + first // BLOCK_K, mask=m_there, other=0.0)
        w_scale = tl.load(w_scale_rows + (first + before) // BLOCK, mask=n_there, other=0.0)
        total += product(weight, x) * w_scale[:, None] * x_scale[None, :]
    if HAS_BIAS:
        total += tl.load(bias + n, mask=n_there, other=0.0).to(tl.float32)[:, None]
    to = out + ((tl.program_id(2) * rows + m).to(tl.int64) * outputs)[None, :] + n[:, None]
    tl.store(to, rounded(total, out.dtype.element_ty), mask=n_there[:, None] & m_there[None, :])
