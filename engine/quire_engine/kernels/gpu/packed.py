"""Products with weights of a few bits, packed into words, with a scale and a zero point for each group of inputs.

A tile of the weight is unpacked where it is multiplied. It is the left operand, which tensor cores take from registers,
and the batch the right one: a few rows of the batch leave no part of a tile idle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.arithmetic import product, rounded
from quire_engine.kernels.gpu.shares import SMALL, cut, join


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """w = (number - zero) * scale, as float32; rounded to the type of what it is multiplied with.

    Without zero points numbers have a sign. That of experts has tensors of one dimension more, the first.
    """

    words: torch.Tensor  # [outputs, inputs * bits / 32] int32; a word's first number is in its lowest bits
    zeros: torch.Tensor | None  # [outputs * bits / 32, groups] int32: those of the outputs of a word
    scales: torch.Tensor  # [outputs, groups] float16 or float32
    group_of: torch.Tensor | None  # [inputs] int32: each input's group; None where groups are of neighbours, and whole
    bits: int  # 2, 4 or 8
    zero_offset: int = 0  # what is added to stored zero points, modulo 2^bits

    @staticmethod
    def of_bytes(weight: torch.Tensor, scale: torch.Tensor) -> PackedWeight:
        """weight [outputs, inputs] int8, of a multiple of 4 inputs, times scale [outputs, 1]."""
        return PackedWeight(weight.view(torch.int32), None, scale, None, 8)

    def steps(self, inputs: int, most: int) -> tuple[int, int, bool]:
        """How a kernel goes through the inputs: `most` of them at once or fewer, a power of two.

        Also the inputs of a group, 0 where they lie apart, and whether all of a step are of one group.
        """
        groups = self.scales.shape[-1]
        group = inputs // groups if self.group_of is None else 0
        if groups == 1 or not group or group % 16:
            at_once = min(most, max(16, 1 << (inputs - 1).bit_length()))
        else:
            at_once = min(most, group & -group)
        return at_once, group, groups == 1 or (group > 0 and group % at_once == 0)


def multiply_packed(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """x [..., inputs] float -> [..., outputs] of its dtype. Sums are float32, and always in the same order."""
    outputs, groups = weight.scales.shape
    rows, inputs = x.numel() // x.shape[-1], x.shape[-1]
    out = x.new_empty(*x.shape[:-1], outputs)
    if not rows:
        return out
    x, float32 = x.contiguous(), x.dtype == torch.float32
    block_m = min(triton.next_power_of_2(max(rows, 16)), 32 if float32 else 128)
    block_n = 64 if float32 or rows <= SMALL else 128
    block_k, group, of_tile = weight.steps(inputs, 32 if float32 else 128 if rows <= SMALL else 64)
    flat = out.view(rows, outputs)
    tiles = cut(flat, inputs, (block_m, block_n, block_k))
    _multiply_packed[tiles.grid](
        x,
        weight.words,
        weight.words if weight.zeros is None else weight.zeros,
        weight.scales,
        weight.scales if weight.group_of is None else weight.group_of,
        x if bias is None else bias,
        tiles.results,
        rows,
        outputs,
        inputs,
        groups,
        tiles.inputs_each,
        BITS=weight.bits,
        ZERO_OFFSET=weight.zero_offset,
        SIGNED=weight.zeros is None,
        GROUP=group,
        OF_TILE=of_tile,
        HAS_BIAS=bias is not None and tiles.shares == 1,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=8 if rows > SMALL and not float32 else 4,
        num_stages=2 if float32 else 3,
    )
    join(tiles, bias, flat)
    return out


@triton.jit
def unpacked(
    word_rows,  # [BLOCK_N, 1] pointers, as the others are [BLOCK_N]
    zero_rows,
    zero_shift,
    scale_rows,
    n_there,
    group_of,
    first,
    inputs,
    dtype: tl.constexpr,
    BITS: tl.constexpr,
    ZERO_OFFSET: tl.constexpr,
    SIGNED: tl.constexpr,
    GROUP: tl.constexpr,  # inputs of a group of neighbours, or 0
    OF_TILE: tl.constexpr,  # whether all inputs of a tile are of one group
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of a weight as `dtype`: some outputs by the inputs from `first` on, [BLOCK_N, BLOCK_K]."""
    each: tl.constexpr = 32 // BITS
    mask: tl.constexpr = (1 << BITS) - 1
    # With these bits before it a number is 2^23 + itself in float32: differences are exact, and cost no conversion.
    as_float: tl.constexpr = 0x4B000000
    at = first // each + tl.arange(0, BLOCK_K // each)
    packed = tl.load(word_rows + at[None, :], mask=n_there[:, None] & (at < inputs // each)[None, :], other=0)
    shifts = tl.arange(0, each) * BITS
    numbers = tl.reshape((packed[:, :, None] >> shifts[None, None, :]) & mask, [BLOCK_N, BLOCK_K])
    if OF_TILE:
        of_group, there = first // GROUP + tl.zeros([1, 1], tl.int32), n_there[:, None]
    else:
        k = first + tl.arange(0, BLOCK_K)
        group = k // GROUP if GROUP > 0 else tl.load(group_of + k, mask=k < inputs, other=0)
        of_group, there = group[None, :], n_there[:, None] & (k < inputs)[None, :]
    scale = tl.load(scale_rows[:, None] + of_group, mask=there, other=0.0)
    if SIGNED:
        above = ((numbers ^ 128) | as_float).to(tl.float32, bitcast=True) - 8388736.0
    else:
        zero = tl.load(zero_rows[:, None] + of_group, mask=there, other=0)
        zero = ((zero >> zero_shift[:, None]) + ZERO_OFFSET) & mask
        above = (numbers | as_float).to(tl.float32, bitcast=True) - (zero | as_float).to(tl.float32, bitcast=True)
    return rounded(above * scale.to(tl.float32), dtype)


@triton.jit
def _multiply_packed(
    x_all,
    words,
    zeros,
    scales,
    group_of,
    bias,
    out,
    rows,
    outputs,
    inputs,
    groups,
    inputs_each,
    BITS: tl.constexpr,
    ZERO_OFFSET: tl.constexpr,
    SIGNED: tl.constexpr,
    GROUP: tl.constexpr,
    OF_TILE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    each: tl.constexpr = 32 // BITS
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_there, n_there = m < rows, n < outputs
    dtype = x_all.dtype.element_ty
    x_rows = x_all + (m.to(tl.int64) * inputs)[None, :]
    word_rows = words + (n.to(tl.int64) * (inputs // each))[:, None]
    zero_rows, zero_shift = zeros + n // each * groups, n % each * BITS
    scale_rows = scales + n * groups
    begin = tl.program_id(2) * inputs_each
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for first in range(begin, tl.minimum(begin + inputs_each, inputs), BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        weight = unpacked(
            word_rows,
            zero_rows,
            zero_shift,
            scale_rows,
            n_there,
            group_of,
            first,
            inputs,
            dtype,
            BITS,
            ZERO_OFFSET,
            SIGNED,
            GROUP,
            OF_TILE,
            BLOCK_N,
            BLOCK_K,
        )
        x = tl.load(x_rows + k[:, None], mask=(k < inputs)[:, None] & m_there[None, :], other=0.0)
        total += product(weight, x)
    if HAS_BIAS:
        total += tl.load(bias + n, mask=n_there, other=0.0).to(tl.float32)[:, None]
    to = out + ((tl.program_id(2) * rows + m).to(tl.int64) * outputs)[None, :] + n[:, None]
    tl.store(to, rounded(total, out.dtype.element_ty), mask=n_there[:, None] & m_there[None, :])
