"""What attention takes beside its inputs, where torch has no kernel for its scores, is no more than is planned for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from quire_engine.attention.scores import Alibi, alibi_slopes, soft_capped_attention
from quire_engine.memory_plan.plan import SCORE_BYTES

HEADS, KV_HEADS, ROWS, KEYS, HEAD_DIM = 8, 4, 64, 1024, 8


def peak(run: Callable[[], object]) -> int:
    """The most bytes that were allocated at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]  # there once it has run
    now = most = 0
    for event in events:
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["soft-capped", "alibi"])
def test_scores_take_no_more_than_is_planned_for_each(kind: str, dtype: torch.dtype) -> None:
    q = torch.randn(1, HEADS, ROWS, HEAD_DIM, dtype=dtype)
    k = torch.randn(1, KV_HEADS, KEYS, HEAD_DIM, dtype=dtype)
    mask = torch.ones(ROWS, KEYS, dtype=torch.bool)
    alibi = Alibi(alibi_slopes(HEADS))

    def run() -> None:
        if kind == "soft-capped":
            soft_capped_attention(q, k, k, mask[None, None], 0.1, 30.0)
            return
        bias = alibi.bias(mask, alibi.slopes[:, None, None], torch.arange(KEYS)[None]).to(dtype)
        scaled_dot_product_attention(q, k, k, attn_mask=bias, enable_gqa=True)

    keys, masks = HEADS * KEYS * HEAD_DIM * q.element_size(), ROWS * KEYS * (2 + q.element_size())
    taken = peak(run)
    scores = HEADS * ROWS * KEYS
    assert 8 * scores < taken <= SCORE_BYTES * scores + keys + masks
