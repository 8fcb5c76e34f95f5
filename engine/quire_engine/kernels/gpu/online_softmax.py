"""The part that kernels of attention share: rows of queries over a range of a sequence's pages."""

from __future__ import annotations

import triton
import triton.language as tl

from quire_engine.kernels.gpu.arithmetic import product, rounded

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def part_of(length, start, split, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, LEAST: tl.constexpr):
    """From where to where a part of a sequence goes, which begins at `start`: of `LEAST` tokens, or more."""
    each = (length - start + SPLITS - 1) // SPLITS
    each = tl.maximum((each + BLOCK_N - 1) // BLOCK_N * BLOCK_N, LEAST)
    low = start + split * each
    return low, tl.minimum(low + each, length)


@triton.jit
def weigh(scores, best, total):
    """Take scores [ROWS, BLOCK_N], to the base 2, to what was seen before: the greatest and the sums [ROWS] float32.

    Gives the weights [ROWS, BLOCK_N], what earlier sums are to be multiplied by [ROWS], and both anew.
    """
    new_best = tl.maximum(best, tl.max(scores, axis=1))
    shift = tl.where(new_best == float("-inf"), 0.0, new_best)  # a row that has seen no key yet
    weights = tl.exp2(scores - shift[:, None])
    shrink = tl.exp2(best - shift)
    return weights, shrink, new_best, total * shrink + tl.sum(weights, axis=1)


@triton.jit
def attend_range(
    q,  # [ROWS, BLOCK_D]
    query_positions,  # [ROWS] int32
    slopes,  # [ROWS] in the dtype that biases are rounded to; read with ALIBI alone
    k_of_head,
    v_of_head,
    table,
    low,  # where the first tile begins
    lowest,  # the first position that is read
    high,
    slot_stride,
    scale,
    softcap,
    alibi_scale,
    WINDOW: tl.constexpr,  # 0 for none
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
):
    """Sums over the keys from `lowest` to below `high`, a tile at a time (Milakov and Gimelshein, 2018; Dao et al.,
    FlashAttention, section 3.1): the weighted values [ROWS, BLOCK_D], the greatest scores and the sums of
    weights [ROWS], all float32 and to the base 2.
    """
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    weighted = tl.zeros([ROWS, BLOCK_D], tl.float32)
    features = tl.arange(0, BLOCK_D)
    for first in range(low, high, BLOCK_N):
        positions = first + tl.arange(0, BLOCK_N)
        there = (positions >= lowest) & (positions < high)
        pages = tl.load(table + positions // PAGE, mask=there, other=0).to(tl.int64)
        slots = (pages * PAGE + positions % PAGE) * slot_stride
        inside = there[:, None] & (features < HEAD_DIM)[None, :]
        at = slots[:, None] + features[None, :]
        # What was not written, or is another's since the window has left it, may be NaN, which no weight of zero
        # hides: it is not read.
        k = tl.load(k_of_head + at, mask=inside, other=0.0).to(q.dtype)
        scores = product(q, tl.trans(k)) * scale
        if SOFTCAP:
            # tanh(x) = 1 - 2 / (exp(2x) + 1), which is right at both infinities.
            scores = softcap * (1.0 - 2.0 / (tl.exp2(scores * (2.0 * LOG2_E) / softcap) + 1.0))
        if ALIBI:
            # Rounded as the model was trained. The query's own share is taken off: a softmax minds no constant.
            slope = slopes.to(tl.float32)
            of_keys = slope[:, None] * rounded(positions.to(tl.float32), slopes.dtype).to(tl.float32)[None, :]
            of_query = slope * rounded(query_positions.to(tl.float32), slopes.dtype).to(tl.float32)
            of_keys = rounded(of_keys, slopes.dtype).to(tl.float32)
            of_query = rounded(of_query, slopes.dtype).to(tl.float32)
            scores += (of_keys - of_query[:, None]) * alibi_scale
        visible = there[None, :] & (positions[None, :] <= query_positions[:, None])
        if WINDOW > 0:
            visible = visible & (positions[None, :] > query_positions[:, None] - WINDOW)
        scores = tl.where(visible, scores * LOG2_E, float("-inf"))
        weights, shrink, best, total = weigh(scores, best, total)
        v = tl.load(v_of_head + at, mask=inside, other=0.0).to(q.dtype)
        weighted = weighted * shrink[:, None] + product(rounded(weights, q.dtype), v)
    return weighted, best, total
