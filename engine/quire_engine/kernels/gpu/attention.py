"""Attention over a paged KV cache: prompts and decodes in one launch, and decodes split along their length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.arithmetic import rounded
from quire_engine.kernels.gpu.online_softmax import attend_range, part_of

SPLITS = 16
"""Into how many parts a long sequence is split: with 8 KV heads one sequence fills 128 of an H200's 132 SMs."""

LEAST_SPLIT = 256
"""Tokens of a part, at least: shorter ones cost more to put together than they save."""


@dataclass(frozen=True, slots=True)
class ScoreRules:
    """How a layer's scores are made of products, as `PagedAttention` says. Scales of keys and values are fp8's."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    slopes: torch.Tensor | None = None  # [num_heads]: of ALiBi, rounded to its dtype
    slope_scale: float = 1.0
    k_scale: float = 1.0
    v_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Spans:
    """Rows of a batch that attend to their sequences, as tiles of work, those with most keys first."""

    tables: torch.Tensor  # [num_seqs, max_blocks] int64
    spans: torch.Tensor  # [num_seqs, 3] int32: first row of the batch, number of rows, position of the first
    tiles: torch.Tensor  # [num_tiles, 2] int32: the sequence, and the first of the tile's rows in it


def rows_of_tile(num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> tuple[int, int]:
    """Rows of a tile of `attend`, and how many tokens they are: the query heads of a KV head lie side by side."""
    group = num_heads // num_kv_heads
    rows = max(128 // max(1, _bytes(head_dim, dtype) // 256), 16, int(triton.next_power_of_2(group)))
    return rows, rows // group


def _bytes(head_dim: int, dtype: torch.dtype) -> int:
    """Of a key in shared memory, which sets how large tiles may be: a Hopper SM has 227 KiB."""
    return max(16, int(triton.next_power_of_2(head_dim))) * dtype.itemsize


def _keys_of_tile(head_dim: int, dtype: torch.dtype) -> tuple[int, int]:
    """Keys of a tile, and how many tiles are on their way at once."""
    size = _bytes(head_dim, dtype)
    return (64 if size <= 512 else 32), (3 if size <= 256 else 2)


def attend(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, out: torch.Tensor, what: Spans, rules: ScoreRules
) -> None:
    """Write to `out` what rows of `q` [num_tokens, num_heads, head_dim] attend to, for those that `what` names.

    Caches are [num_blocks, block_size, num_kv_heads, head_dim] and hold the batch's own keys already.
    `what.tiles` begin at multiples of what `rows_of_tile` says.
    """
    num_heads, head_dim = q.shape[1:]
    _, page, num_kv_heads, _ = k_cache.shape
    rows, tokens = rows_of_tile(num_heads, num_kv_heads, head_dim, q.dtype)
    keys, stages = _keys_of_tile(head_dim, q.dtype)
    _attend_spans[(len(what.tiles), num_kv_heads)](
        q,
        k_cache,
        v_cache,
        out,
        what.tables,
        what.spans,
        what.tiles,
        q if rules.slopes is None else rules.slopes,
        what.tables.stride(0),
        q.stride(0),
        q.stride(1),
        out.stride(0),
        out.stride(1),
        k_cache.stride(1),
        rules.scale * rules.k_scale,
        rules.softcap or 0.0,
        rules.slope_scale,
        rules.v_scale,
        WINDOW=rules.window or 0,
        SOFTCAP=rules.softcap is not None,
        ALIBI=rules.slopes is not None,
        GROUP=num_heads // num_kv_heads,
        TOKENS=tokens,
        HEAD_DIM=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        ROWS=rows,
        BLOCK_N=keys,
        PAGE=page,
        num_warps=4 if head_dim <= 64 else 8,
        num_stages=stages,
    )


def attend_decodes(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    out: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    rules: ScoreRules,
) -> None:
    """As `attend`, for one row a sequence, the last of its `lengths` [num_seqs] int32, which the tables hold.

    The grid depends on the number of sequences alone, and their lengths are read on the device: it can be captured in
    a CUDA graph. A sequence of length 0 gets zeros. How a sequence is split depends on its length alone, so that its
    result does not depend on who else is in the batch.
    """
    num_seqs, num_heads, head_dim = q.shape
    _, page, num_kv_heads, _ = k_cache.shape
    rows = max(16, triton.next_power_of_2(num_heads // num_kv_heads))
    keys, stages = _keys_of_tile(head_dim, q.dtype)
    block_d = max(16, triton.next_power_of_2(head_dim))
    partial = torch.empty(num_seqs, num_heads, SPLITS, head_dim, dtype=torch.float32, device=q.device)
    sums = torch.empty(num_seqs, num_heads, SPLITS, dtype=torch.float32, device=q.device)
    _attend_splits[(num_seqs, num_kv_heads, SPLITS)](
        q,
        k_cache,
        v_cache,
        partial,
        sums,
        tables,
        lengths,
        q if rules.slopes is None else rules.slopes,
        tables.stride(0),
        q.stride(0),
        q.stride(1),
        k_cache.stride(1),
        rules.scale * rules.k_scale,
        rules.softcap or 0.0,
        rules.slope_scale,
        WINDOW=rules.window or 0,
        SOFTCAP=rules.softcap is not None,
        ALIBI=rules.slopes is not None,
        GROUP=num_heads // num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        ROWS=rows,
        BLOCK_N=keys,
        PAGE=page,
        SPLITS=SPLITS,
        LEAST=LEAST_SPLIT,
        num_warps=4,
        num_stages=stages,
    )
    join_splits(partial, sums, out, rules.v_scale)


def join_splits(partial: torch.Tensor, sums: torch.Tensor, out: torch.Tensor, v_scale: float = 1.0) -> None:
    """Write to `out` [num_seqs, num_heads, head_dim] what the parts of each sequence are together, times `v_scale`.

    Each part's mean of values [num_seqs, num_heads, splits, head_dim] float32 weighs as much as the logarithm to the
    base 2 of its sum of weights [num_seqs, num_heads, splits] float32 says: minus infinity for a part that is empty.
    """
    num_seqs, num_heads, splits, head_dim = partial.shape
    block_d = max(16, triton.next_power_of_2(head_dim))
    _join_splits[(num_seqs, num_heads)](
        partial,
        sums,
        out,
        out.stride(0),
        out.stride(1),
        v_scale,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        SPLITS=splits,
        num_warps=min(16, max(2, splits * block_d // 1024)),
    )


@triton.jit
def _attend_spans(
    q_all,
    k_cache,
    v_cache,
    out,
    tables,
    spans,
    tiles,
    slopes,
    table_stride,
    q_row_stride,
    q_head_stride,
    out_row_stride,
    out_head_stride,
    slot_stride,
    scale,
    softcap,
    slope_scale,
    v_scale,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
):
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    sequence = tl.load(tiles + 2 * tile)
    begin = tl.load(tiles + 2 * tile + 1)
    first_row = tl.load(spans + 3 * sequence)
    count = tl.load(spans + 3 * sequence + 1)
    start = tl.load(spans + 3 * sequence + 2)

    rows, features = tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    tokens = begin + rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    there = (rows // GROUP < TOKENS) & (tokens < count)
    inside = there[:, None] & (features < HEAD_DIM)[None, :]
    q_at = (first_row + tokens).to(tl.int64) * q_row_stride + heads * q_head_stride
    q = tl.load(q_all + q_at[:, None] + features[None, :], mask=inside, other=0.0)
    of_heads = rows
    if ALIBI:
        of_heads = tl.load(slopes + heads, mask=there, other=0.0)

    high = start + tl.minimum(begin + TOKENS, count)
    lowest = 0
    if WINDOW > 0:
        lowest = tl.maximum(start + begin - WINDOW + 1, 0)
    weighted, _, total = attend_range(
        q,
        start + tokens,
        of_heads,
        k_cache + kv_head * HEAD_DIM,
        v_cache + kv_head * HEAD_DIM,
        tables + sequence.to(tl.int64) * table_stride,
        lowest // BLOCK_N * BLOCK_N,
        lowest,
        high,
        slot_stride,
        scale,
        softcap,
        slope_scale,
        WINDOW,
        SOFTCAP,
        ALIBI,
        HEAD_DIM,
        BLOCK_D,
        ROWS,
        BLOCK_N,
        PAGE,
    )
    attended = weighted * (v_scale / tl.where(there, total, 1.0))[:, None]
    out_at = (first_row + tokens).to(tl.int64) * out_row_stride + heads * out_head_stride
    tl.store(out + out_at[:, None] + features[None, :], rounded(attended, out.dtype.element_ty), mask=inside)


@triton.jit
def _attend_splits(
    q_all,
    k_cache,
    v_cache,
    partial,
    sums,
    tables,
    lengths,
    slopes,
    table_stride,
    q_row_stride,
    q_head_stride,
    slot_stride,
    scale,
    softcap,
    slope_scale,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
    SPLITS: tl.constexpr,
    LEAST: tl.constexpr,
):
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence)
    start = 0
    if WINDOW > 0:
        start = tl.maximum(length - WINDOW, 0)
    low, high = part_of(length, start, split, SPLITS, BLOCK_N, LEAST)

    rows, features = tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    there = rows < GROUP
    heads = kv_head * GROUP + rows
    num_heads = tl.num_programs(1) * GROUP
    at = (sequence.to(tl.int64) * num_heads + heads) * SPLITS + split
    if low >= high:
        tl.store(sums + at, tl.full([ROWS], float("-inf"), tl.float32), mask=there)
        return
    inside = there[:, None] & (features < HEAD_DIM)[None, :]
    q_at = sequence.to(tl.int64) * q_row_stride + heads * q_head_stride
    q = tl.load(q_all + q_at[:, None] + features[None, :], mask=inside, other=0.0)
    of_heads = rows
    if ALIBI:
        of_heads = tl.load(slopes + heads, mask=there, other=0.0)
    weighted, best, total = attend_range(
        q,
        tl.zeros([ROWS], tl.int32) + (length - 1),
        of_heads,
        k_cache + kv_head * HEAD_DIM,
        v_cache + kv_head * HEAD_DIM,
        tables + sequence.to(tl.int64) * table_stride,
        low,
        low,
        high,
        slot_stride,
        scale,
        softcap,
        slope_scale,
        WINDOW,
        SOFTCAP,
        ALIBI,
        HEAD_DIM,
        BLOCK_D,
        ROWS,
        BLOCK_N,
        PAGE,
    )
    tl.store(partial + at[:, None] * HEAD_DIM + features[None, :], weighted / total[:, None], mask=inside)
    tl.store(sums + at, best + tl.log2(total), mask=there)


@triton.jit
def _join_splits(
    partial,
    sums,
    out,
    out_row_stride,
    out_head_stride,
    v_scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLITS: tl.constexpr,
):
    sequence, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    splits, features = tl.arange(0, SPLITS), tl.arange(0, BLOCK_D)
    at = (sequence * tl.num_programs(1) + head) * SPLITS + splits
    of_splits = tl.load(sums + at)
    best = tl.max(of_splits, axis=0)
    weights = tl.exp2(of_splits - tl.where(best == float("-inf"), 0.0, best))
    written = (of_splits > float("-inf"))[:, None] & (features < HEAD_DIM)[None, :]
    values = tl.load(partial + at[:, None] * HEAD_DIM + features[None, :], mask=written, other=0.0)
    total = tl.sum(weights, axis=0)
    attended = tl.sum(values * weights[:, None], axis=0) * (v_scale / tl.where(total > 0.0, total, 1.0))
    to = out + sequence * out_row_stride + head * out_head_stride + features
    tl.store(to, rounded(attended, out.dtype.element_ty), mask=features < HEAD_DIM)
