"""Attention over pages of latent vectors, of which each is the key and, but for its last part, the value of all heads.

Heads lie side by side in the rows of a tile, so that a vector is read once for 64 of them (DeepSeek-V2, section 2.1.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.arithmetic import product, rounded
from quire_engine.kernels.gpu.attention import LEAST_SPLIT, Spans, join_splits
from quire_engine.kernels.gpu.online_softmax import LOG2_E, part_of, weigh

SPLITS = 32
"""Into how many parts a long sequence is split: with 128 heads one sequence has 64 programs."""

PARTIAL_BYTES = 1 << 28
"""Of what the parts of sequences leave to be joined, at most: V3's of 32 sequences. More take turns."""


@dataclass(frozen=True, slots=True)
class _Tile:
    rows: int  # pairs of a token and a head
    keys: int
    warps: int
    stages: int


def _tile(num_rows: int, dtype: torch.dtype) -> _Tile:
    """For so many rows that look at the same keys. 64 rows of 512 sums take half of an SM's registers."""
    if dtype == torch.float32:
        return _Tile(16, 16, 8, 1)
    rows = min(64, max(16, int(triton.next_power_of_2(num_rows))))
    return _Tile(rows, 32, 8 if rows > 16 else 4, 2)


def tokens_of_tile(num_heads: int, dtype: torch.dtype) -> int:
    """How many tokens are in a tile of `attend_chunks`: a tile may also have some of the heads of one."""
    return max(1, _tile(64, dtype).rows // num_heads)


def attend_chunks(q: torch.Tensor, cache: torch.Tensor, out: torch.Tensor, what: Spans, scale: float) -> None:
    """Write to `out` what rows of `q` [num_tokens, num_heads, rank + rope] attend to, for those that `what` names.

    The cache is [num_blocks, block_size, 1, rank + rope], and holds the batch's own vectors already. Their first `rank`
    numbers are the values: `out` is [num_tokens, num_heads, rank]. `what.tiles` begin at multiples of `tokens_of_tile`.
    """
    num_heads, width = q.shape[1:]
    rank, tile = out.shape[2], _tile(64, q.dtype)
    group = min(num_heads, tile.rows)
    _attend_latent_chunks[(len(what.tiles), triton.cdiv(num_heads, group))](
        q,
        cache,
        out,
        what.tables,
        what.spans,
        what.tiles,
        num_heads,
        what.tables.stride(0),
        q.stride(0),
        q.stride(1),
        out.stride(0),
        out.stride(1),
        cache.stride(1),
        scale,
        GROUP=group,
        TOKENS=tokens_of_tile(num_heads, q.dtype),
        RANK=rank,
        ROPE=width - rank,
        BLOCK_R=_block(rank),
        BLOCK_P=_block(width - rank),
        ROWS=tile.rows,
        BLOCK_N=tile.keys,
        PAGE=cache.shape[1],
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def attend_decodes(
    q: torch.Tensor, cache: torch.Tensor, out: torch.Tensor, tables: torch.Tensor, lengths: torch.Tensor, scale: float
) -> None:
    """As `attend_chunks`, for one row a sequence, the last of its `lengths` [num_seqs] int32, which the tables hold.

    Grids depend on the number of sequences alone, and a result on its own sequence alone, as in `attention`. A sequence
    of length 0 gets zeros.
    """
    num_seqs, num_heads, width = q.shape
    rank, tile = out.shape[2], _tile(num_heads, q.dtype)
    group = min(num_heads, tile.rows)
    at_once = min(num_seqs, max(1, PARTIAL_BYTES // (4 * num_heads * SPLITS * rank)))
    partial = torch.empty(at_once, num_heads, SPLITS, rank, dtype=torch.float32, device=q.device)
    sums = torch.empty(at_once, num_heads, SPLITS, dtype=torch.float32, device=q.device)
    for first in range(0, num_seqs, at_once):
        own = slice(first, min(first + at_once, num_seqs))
        count = own.stop - first
        _attend_latent_splits[(count, triton.cdiv(num_heads, group), SPLITS)](
            q[own],
            cache,
            partial,
            sums,
            tables[own],
            lengths[own],
            num_heads,
            tables.stride(0),
            q.stride(0),
            q.stride(1),
            cache.stride(1),
            scale,
            GROUP=group,
            RANK=rank,
            ROPE=width - rank,
            BLOCK_R=_block(rank),
            BLOCK_P=_block(width - rank),
            ROWS=tile.rows,
            BLOCK_N=tile.keys,
            PAGE=cache.shape[1],
            SPLITS=SPLITS,
            LEAST=LEAST_SPLIT,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        join_splits(partial[:count], sums[:count], out[own])


def _block(size: int) -> int:
    return max(16, int(triton.next_power_of_2(size)))


@triton.jit
def _attend_latent_chunks(
    q_all,
    cache,
    out,
    tables,
    spans,
    tiles,
    num_heads,
    table_stride,
    q_row_stride,
    q_head_stride,
    out_row_stride,
    out_head_stride,
    slot_stride,
    scale,
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
):
    tile = tl.program_id(0)
    sequence = tl.load(tiles + 2 * tile)
    begin = tl.load(tiles + 2 * tile + 1)
    first_row = tl.load(spans + 3 * sequence)
    count = tl.load(spans + 3 * sequence + 1)
    start = tl.load(spans + 3 * sequence + 2)

    rows = tl.arange(0, ROWS)
    tokens = begin + rows // GROUP
    heads = tl.program_id(1) * GROUP + rows % GROUP
    there = (rows // GROUP < TOKENS) & (tokens < count) & (heads < num_heads)
    of_rows = (first_row + tokens).to(tl.int64)
    weighted, _, total = _attend_range(
        q_all + of_rows * q_row_stride + heads * q_head_stride,
        there,
        start + tokens,
        cache,
        tables + sequence.to(tl.int64) * table_stride,
        0,
        start + tl.minimum(begin + TOKENS, count),
        slot_stride,
        scale,
        RANK,
        ROPE,
        BLOCK_R,
        BLOCK_P,
        ROWS,
        BLOCK_N,
        PAGE,
    )
    attended = rounded(weighted / tl.where(there, total, 1.0)[:, None], out.dtype.element_ty)
    features = tl.arange(0, BLOCK_R)
    to = out + (of_rows * out_row_stride + heads * out_head_stride)[:, None] + features[None, :]
    tl.store(to, attended, mask=there[:, None] & (features < RANK)[None, :])


@triton.jit
def _attend_latent_splits(
    q_all,
    cache,
    partial,
    sums,
    tables,
    lengths,
    num_heads,
    table_stride,
    q_row_stride,
    q_head_stride,
    slot_stride,
    scale,
    GROUP: tl.constexpr,
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
    SPLITS: tl.constexpr,
    LEAST: tl.constexpr,
):
    sequence, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
    length = tl.load(lengths + sequence)
    low, high = part_of(length, 0, split, SPLITS, BLOCK_N, LEAST)
    rows = tl.arange(0, ROWS)
    heads = tl.program_id(1) * GROUP + rows
    there = (rows < GROUP) & (heads < num_heads)
    at = (sequence * num_heads + heads) * SPLITS + split
    if low >= high:
        tl.store(sums + at, tl.full([ROWS], float("-inf"), tl.float32), mask=there)
        return
    weighted, best, total = _attend_range(
        q_all + sequence * q_row_stride + heads * q_head_stride,
        there,
        tl.zeros([ROWS], tl.int32) + (length - 1),
        cache,
        tables + sequence * table_stride,
        low,
        high,
        slot_stride,
        scale,
        RANK,
        ROPE,
        BLOCK_R,
        BLOCK_P,
        ROWS,
        BLOCK_N,
        PAGE,
    )
    features = tl.arange(0, BLOCK_R)
    to = partial + at[:, None] * RANK + features[None, :]
    tl.store(to, weighted / total[:, None], mask=there[:, None] & (features < RANK)[None, :])
    tl.store(sums + at, best + tl.log2(total), mask=there)


@triton.jit
def _attend_range(
    q_rows,  # [ROWS] pointers
    there,  # [ROWS]
    query_positions,  # [ROWS] int32
    cache,
    table,
    low,
    high,
    slot_stride,
    scale,
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
):
    """As `online_softmax.attend_range`, over the vectors from `low` to below `high`: sums are [ROWS, BLOCK_R]."""
    latents, ropes = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    latents_there, ropes_there = (latents < RANK)[None, :], (ropes < ROPE)[None, :]
    q = tl.load(q_rows[:, None] + latents[None, :], mask=there[:, None] & latents_there, other=0.0)
    q_rope = tl.load(q_rows[:, None] + RANK + ropes[None, :], mask=there[:, None] & ropes_there, other=0.0)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    weighted = tl.zeros([ROWS, BLOCK_R], tl.float32)
    for first in range(low, high, BLOCK_N):
        positions = first + tl.arange(0, BLOCK_N)
        inside = positions < high
        pages = tl.load(table + positions // PAGE, mask=inside, other=0).to(tl.int64)
        slots = cache + ((pages * PAGE + positions % PAGE) * slot_stride)[:, None]
        # What was not written may be NaN, which no weight of zero hides: it is not read.
        latent = tl.load(slots + latents[None, :], mask=inside[:, None] & latents_there, other=0.0)
        rope = tl.load(slots + RANK + ropes[None, :], mask=inside[:, None] & ropes_there, other=0.0)
        scores = product(q, tl.trans(latent)) + product(q_rope, tl.trans(rope))
        visible = inside[None, :] & (positions[None, :] <= query_positions[:, None])
        scores = tl.where(visible, scores * (scale * LOG2_E), float("-inf"))
        weights, shrink, best, total = weigh(scores, best, total)
        weighted = weighted * shrink[:, None] + product(rounded(weights, q.dtype), latent)
    return weighted, best, total
