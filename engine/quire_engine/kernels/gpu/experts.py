"""Products of rows with the weights of the experts that they are sent to: one launch for all experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.arithmetic import product, rounded
from quire_engine.kernels.gpu.fp8 import ScaledWeight, scaled
from quire_engine.kernels.gpu.packed import PackedWeight, unpacked

ExpertWeight = torch.Tensor | PackedWeight | ScaledWeight
"""Of all experts: [num_experts, outputs, inputs] of the type of what it is multiplied with, or quantized."""


@dataclass(frozen=True, slots=True)
class Routes:
    """Pairs of a token and an expert, in tiles of one expert each. Made on the device, which nobody waits for."""

    pairs: torch.Tensor  # [num_tiles * rows] int64: token * top_k + place in its choice, or -1 where a tile is not full
    experts: torch.Tensor  # [num_tiles] int64: of the tile, or the number of experts where there is none
    rows: int  # of a tile
    top_k: int


def route(chosen: torch.Tensor, num_experts: int) -> Routes:
    """For chosen experts [num_tokens, top_k] int64. What is not from 0 to below `num_experts` is left out."""
    device, top_k, count = chosen.device, chosen.shape[1], chosen.numel()
    rows = 16 if count <= 16 * num_experts else 64
    num_tiles = triton.cdiv(count, rows) + min(count, num_experts)  # most of them, whatever is chosen
    flat = chosen.flatten()
    flat = torch.where((flat >= 0) & (flat < num_experts), flat, num_experts)
    counts = torch.zeros(num_experts + 1, dtype=torch.int64, device=device).scatter_add_(0, flat, torch.ones_like(flat))
    padded = (counts + rows - 1) // rows * rows
    ends = padded[:num_experts].cumsum(0)
    experts = torch.searchsorted(ends, torch.arange(num_tiles, device=device) * rows, right=True)
    order = flat.argsort(stable=True)
    of_pair = flat[order]
    within = torch.arange(count, device=device) - (counts.cumsum(0) - counts)[of_pair]
    # Those that are left out go behind the last tile, where nobody looks.
    firsts = torch.cat((ends - padded[:num_experts], ends.new_full((1,), num_tiles * rows)))
    pairs = torch.full((num_tiles * rows + count,), -1, dtype=torch.int64, device=device)
    pairs[firsts[of_pair] + within] = order
    return Routes(pairs[: num_tiles * rows], experts, rows, top_k)


def multiply(x: torch.Tensor, weight: ExpertWeight, routes: Routes, *, of_tokens: bool) -> torch.Tensor:
    """Each pair's row by its expert's weight [outputs, inputs]: [num_tokens * top_k, outputs] of x's dtype.

    `x` has a row a token, [num_tokens, inputs], or with `of_tokens` false a row a pair. Zeros where a pair is left out.
    A quantized weight is turned into x's dtype tile by tile; `x` is not rounded.
    """
    x = x.contiguous()
    inputs, float32 = x.shape[1], x.dtype == torch.float32
    most = 32 if float32 else 128 if routes.rows <= 16 else 64
    bits = zero_offset = group = groups = before = 0
    zeros: torch.Tensor | None = None
    rows_of_scales: torch.Tensor | None = None
    if isinstance(weight, PackedWeight):
        assert weight.group_of is None, "groups that lie apart are not looked up here"
        numbers, scales, zeros = weight.words, weight.scales, weight.zeros
        bits, zero_offset = weight.bits, weight.zero_offset
        block_k, group, of_tile = weight.steps(inputs, most)
        num_experts, outputs, groups = scales.shape
    elif isinstance(weight, ScaledWeight):
        numbers, scales, rows_of_scales = weight.numbers, weight.scales, weight.scale_row
        block_k, of_tile = weight.steps(most)
        group, before = weight.block, weight.before
        (num_experts, outputs, _), groups = numbers.shape, scales.shape[2]
    else:
        numbers = scales = weight
        block_k, of_tile = min(most, 64), False
        num_experts, outputs, _ = weight.shape
    pairs = x.shape[0] * (routes.top_k if of_tokens else 1)
    out = torch.zeros(pairs, outputs, dtype=x.dtype, device=x.device)
    block_n = 64
    _multiply[(len(routes.experts), triton.cdiv(outputs, block_n))](
        x,
        numbers,
        scales,
        numbers if zeros is None else zeros,
        numbers if rows_of_scales is None else rows_of_scales,
        out,
        routes.pairs,
        routes.experts,
        num_experts,
        outputs,
        inputs,
        scales.stride(0),
        groups,
        before,
        BITS=bits,
        ZERO_OFFSET=zero_offset,
        SIGNED=zeros is None,
        GROUP=group,
        OF_TILE=of_tile,
        TOP_K=routes.top_k if of_tokens else 1,
        ROWS=routes.rows,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=4,
        num_stages=3,
    )
    return out


@triton.jit
def _multiply(
    x_all,
    weights,
    scales,
    zeros,
    rows_of_scales,
    out,
    all_pairs,
    experts,
    num_experts,
    outputs,
    inputs,
    scales_each,  # of an expert
    groups,
    before,
    BITS: tl.constexpr,  # of packed numbers; 0 where they are not
    ZERO_OFFSET: tl.constexpr,
    SIGNED: tl.constexpr,
    GROUP: tl.constexpr,  # inputs of a scale; 0 where there is none
    OF_TILE: tl.constexpr,
    TOP_K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tl.program_id(0)
    expert = tl.load(experts + tile)
    if expert >= num_experts:
        return
    pairs = tl.load(all_pairs + tile * ROWS + tl.arange(0, ROWS))
    there = pairs >= 0
    dtype = x_all.dtype.element_ty
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_there = n < outputs
    x_rows = x_all + (tl.where(there, pairs, 0) // TOP_K * inputs)[None, :]
    each: tl.constexpr = 32 // BITS if BITS > 0 else 1
    w_rows = weights + ((expert * outputs + n) * (inputs // each))[:, None]
    scale_rows = scales + expert * scales_each
    if BITS > 0:
        scale_rows += n * groups
        zero_rows = zeros + (expert * (outputs // each) + n // each) * groups
    elif GROUP > 0:
        scale_rows += tl.load(rows_of_scales + n, mask=n_there, other=0) * groups
    total = tl.zeros([BLOCK_N, ROWS], tl.float32)
    for first in range(0, inputs, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        if BITS > 0:
            w = unpacked(
                w_rows,
                zero_rows,
                n % each * BITS,
                scale_rows,
                n_there,
                rows_of_scales,
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
        elif GROUP > 0:
            w = scaled(w_rows, scale_rows, n_there, first, inputs, before, dtype, GROUP, OF_TILE, BLOCK_K)
        else:
            w = tl.load(w_rows + k[None, :], mask=n_there[:, None] & (k < inputs)[None, :], other=0.0)
        x = tl.load(x_rows + k[:, None], mask=(k < inputs)[:, None] & there[None, :], other=0.0)
        total += product(w, x)
    to = out + (tl.where(there, pairs, 0) * outputs)[None, :] + n[:, None]
    tl.store(to, rounded(total, out.dtype.element_ty), mask=there[None, :] & n_there[:, None])
