"""Products of rows with the weights of the experts that they are sent to: one launch for all experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.arithmetic import product, rounded


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


def multiply(x: torch.Tensor, weight: torch.Tensor, routes: Routes, *, of_tokens: bool) -> torch.Tensor:
    """Each pair's row by its expert's weight [num_experts, outputs, inputs]: [num_tokens * top_k, outputs].

    `x` has a row a token, [num_tokens, inputs], or with `of_tokens` false a row a pair. Zeros where a pair is left out.
    """
    num_experts, outputs, inputs = weight.shape
    x = x.contiguous()
    pairs = x.shape[0] * (routes.top_k if of_tokens else 1)
    out = torch.zeros(pairs, outputs, dtype=x.dtype, device=x.device)
    block_n, block_k = 64, 32 if x.dtype == torch.float32 else 64
    _multiply[(len(routes.experts), triton.cdiv(outputs, block_n))](
        x,
        weight,
        out,
        routes.pairs,
        routes.experts,
        num_experts,
        outputs,
        inputs,
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
    out,
    all_pairs,
    experts,
    num_experts,
    outputs,
    inputs,
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
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < outputs
    x_rows = x_all + (tl.where(there, pairs, 0) // TOP_K * inputs)[:, None]
    w_rows = weights + (expert * outputs + columns.to(tl.int64))[None, :] * inputs
    total = tl.zeros([ROWS, BLOCK_N], tl.float32)
    for first in range(0, inputs, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        x = tl.load(x_rows + k[None, :], mask=there[:, None] & (k < inputs)[None, :], other=0.0)
        w = tl.load(w_rows + k[:, None], mask=(k < inputs)[:, None] & inside[None, :], other=0.0)
        total += product(x, w)
    to = out + (tl.where(there, pairs, 0) * outputs)[:, None] + columns[None, :]
    tl.store(to, rounded(total, out.dtype.element_ty), mask=there[:, None] & inside[None, :])
