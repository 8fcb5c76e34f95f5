"""Tokens drawn within their limits, without a sort and without a wait for the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire_engine.sampling.sampler import SamplingBatch

_TILE = 1024


def draw_within(probabilities: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """A token of each row of `probabilities` [rows, vocab_size] float32: [rows] int64, as by the torch sampler.

    The same tokens are kept: min-p's, of these top-k's, of these top-p's, and those as likely as the last of them.
    """
    rows, vocab_size = probabilities.shape
    out = torch.empty(rows, dtype=torch.int64, device=probabilities.device)
    _draw_within[(rows,)](
        probabilities,
        probabilities if batch.top_k is None else batch.top_k,
        probabilities if batch.top_p is None else batch.top_p,
        probabilities if batch.min_p is None else batch.min_p,
        batch.uniform,
        out,
        vocab_size,
        probabilities.stride(0),
        TOP_K=batch.top_k is not None,
        TOP_P=batch.top_p is not None,
        MIN_P=batch.min_p is not None,
        TILE=min(_TILE, triton.next_power_of_2(vocab_size)),
        num_warps=8,
    )
    return out


@triton.jit
def _values(row, first, vocab_size, least, TILE: tl.constexpr):
    """A tile of probabilities, with 0 for those below `least` and past the end, and which are not past it."""
    columns = first + tl.arange(0, TILE)
    inside = columns < vocab_size
    values = tl.load(row + columns, mask=inside, other=0.0)
    return tl.where(values < least, 0.0, values), inside


@triton.jit
def _where_sums_reach(row, vocab_size, least, wanted, COUNTS: tl.constexpr, TILE: tl.constexpr):
    """The greatest probability of which those from it on count, or sum to, at least `wanted`; 0 if none is.

    Floats that are not negative are ordered as their bits are: 30 for numbers below 2, found three at a time from the
    highest on, by eight sums in one pass.
    """
    found = tl.zeros([], tl.int32)
    for digit in range(10):
        shift = 27 - 3 * digit
        pivots = found + (tl.arange(0, 8) << shift)
        sums = tl.zeros([8], tl.float64)
        for first in range(0, vocab_size, TILE):
            values, inside = _values(row, first, vocab_size, least, TILE)
            bits = values.to(tl.int32, bitcast=True)
            weights = inside.to(tl.float64) if COUNTS else values.to(tl.float64)
            sums += tl.sum(tl.where(bits[:, None] >= pivots[None, :], weights[:, None], 0.0), axis=0)
        reached = tl.sum((sums >= wanted).to(tl.int32), axis=0)
        found += tl.maximum(reached - 1, 0) << shift
    return found.to(tl.float32, bitcast=True)


@triton.jit
def _draw_within(
    probabilities,
    top_k,
    top_p,
    min_p,
    uniforms,
    out,
    vocab_size,
    row_stride,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    TILE: tl.constexpr,
):
    index = tl.program_id(0)
    row = probabilities + index.to(tl.int64) * row_stride
    least = tl.zeros([], tl.float32)
    if MIN_P:
        best = tl.zeros([], tl.float32)
        for first in range(0, vocab_size, TILE):
            values, _ = _values(row, first, vocab_size, 0.0, TILE)
            best = tl.maximum(best, tl.max(values, axis=0))
        least = best * tl.load(min_p + index)
    threshold = tl.zeros([], tl.float32)
    k = vocab_size.to(tl.int64)
    if TOP_K:
        k = tl.load(top_k + index)
        if k < vocab_size:
            threshold = _where_sums_reach(row, vocab_size, least, k.to(tl.float64), True, TILE)
    if TOP_P:
        p = tl.load(top_p + index)
        if p < 1.0:
            above = tl.zeros([], tl.float64)
            count = tl.zeros([], tl.int64)
            for first in range(0, vocab_size, TILE):
                values, _ = _values(row, first, vocab_size, least, TILE)
                likelier = values > threshold
                above += tl.sum(tl.where(likelier, values.to(tl.float64), 0.0), axis=0)
                count += tl.sum(likelier.to(tl.int64), axis=0)
            # Of those as likely as the last only so many count as top-k leaves room for, though all are kept.
            mass = above + (k - count).to(tl.float64) * threshold.to(tl.float64)
            of_p = _where_sums_reach(row, vocab_size, least, p.to(tl.float64) * mass, False, TILE)
            threshold = tl.maximum(threshold, of_p)
    least = tl.maximum(least, threshold)

    total = tl.zeros([], tl.float64)
    last = tl.zeros([], tl.int64)  # of weight: sums taken in another order may end a little lower
    for first in range(0, vocab_size, TILE):
        values, _ = _values(row, first, vocab_size, least, TILE)
        total += tl.sum(values.to(tl.float64), axis=0)
        columns = first + tl.arange(0, TILE)
        last = tl.maximum(last, tl.max(tl.where(values > 0.0, columns, 0), axis=0).to(tl.int64))
    below_total = (total.to(tl.int64, bitcast=True) - 1).to(tl.float64, bitcast=True)
    target = tl.minimum(tl.load(uniforms + index) * total, below_total)
    before = tl.zeros([], tl.float64)
    passed = tl.zeros([], tl.int64)
    for first in range(0, vocab_size, TILE):
        values, inside = _values(row, first, vocab_size, least, TILE)
        weights = values.to(tl.float64)
        sums = before + tl.cumsum(weights, axis=0)
        passed += tl.sum(((sums <= target) & inside).to(tl.int64), axis=0)
        before += tl.sum(weights, axis=0)
    tl.store(out + index, tl.minimum(passed, last))
