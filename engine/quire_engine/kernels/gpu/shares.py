"""Products of few rows with a large weight: programs share its inputs, and what each gives is added up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.arithmetic import rounded

SMALL = 64
"""Rows up to which reading a weight takes longer than multiplying by it."""
_PROGRAMS = 264  # two for each SM of an H100 or H200
_FEWEST_STEPS = 4


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a product [rows, inputs] x [outputs, inputs] is cut, and where its programs leave what they have."""

    grid: tuple[int, int, int]  # tiles of rows, of outputs, and shares of the inputs
    inputs_each: int  # of a share
    results: torch.Tensor  # [rows, outputs] of the output's type, or float32 [shares, rows, outputs]

    @property
    def shares(self) -> int:
        return self.grid[2]


def cut(out: torch.Tensor, inputs: int, blocks: tuple[int, int, int]) -> Tiles:
    """For `out` [rows, outputs] and tiles of so many rows, outputs and inputs."""
    rows, outputs = out.shape
    tiles, steps = (triton.cdiv(rows, blocks[0]), triton.cdiv(outputs, blocks[1])), triton.cdiv(inputs, blocks[2])
    shares = 1 if rows > SMALL else max(1, min(_PROGRAMS // (tiles[0] * tiles[1]), steps // _FEWEST_STEPS))
    steps_each = triton.cdiv(steps, shares)
    shares = triton.cdiv(steps, steps_each)
    results = out if shares == 1 else torch.empty(shares, rows, outputs, dtype=torch.float32, device=out.device)
    return Tiles((*tiles, shares), steps_each * blocks[2], results)


def join(tiles: Tiles, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """Add up what the programs left, in the order of their shares, and the bias; nothing where there is one share."""
    if tiles.shares == 1:
        return
    rows, outputs = out.shape
    block = 256
    _join_shares[(rows, triton.cdiv(outputs, block))](
        tiles.results,
        out if bias is None else bias,
        out,
        rows,
        outputs,
        HAS_BIAS=bias is not None,
        SHARES=tiles.shares,
        BLOCK=block,
        num_warps=4,
    )


@triton.jit
def _join_shares(results, bias, out, rows, outputs, HAS_BIAS: tl.constexpr, SHARES: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = n < outputs
    total = tl.zeros([BLOCK], tl.float32)
    for share in tl.static_range(SHARES):
        total += tl.load(results + (share * rows + row) * outputs + n, mask=there, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + n, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row * outputs + n, rounded(total, out.dtype.element_ty), mask=there)
