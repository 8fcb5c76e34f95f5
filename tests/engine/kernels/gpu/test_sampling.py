"""Tokens drawn by the kernel are those that the torch sampler draws, of the same sets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_engine.core.randomness import uniform
from quire_engine.sampling.sampler import SamplingBatch, draw, restrict

pytestmark = pytest.mark.usefixtures("one_thread")

LIMITS = st.tuples(
    st.one_of(st.just(0), st.integers(1, 60)),
    st.one_of(st.just(1.0), st.integers(1, 99).map(lambda p: p / 100)),
    st.one_of(st.just(0.0), st.integers(1, 90).map(lambda p: p / 100)),
)


def batch_of(limits: list[tuple[int, float, float]], vocab_size: int, seed: int) -> SamplingBatch:
    """As `SamplingState` makes it, of requests with (top_k, top_p, min_p)."""
    rows = len(limits)
    top_k = torch.tensor([min(k, vocab_size) if k else vocab_size for k, _, _ in limits])
    top_p, min_p = (torch.tensor([limit[i] for limit in limits], dtype=torch.float32) for i in (1, 2))
    return SamplingBatch(
        greedy=torch.zeros(rows, dtype=torch.bool),
        all_greedy=False,
        any_greedy=False,
        temperature=torch.ones(rows),
        top_k=top_k if (top_k < vocab_size).any() else None,
        top_p=top_p if (top_p < 1).any() else None,
        min_p=min_p if (min_p > 0).any() else None,
        uniform=torch.tensor([uniform(seed, row) for row in range(rows)], dtype=torch.float64),
    )


def on(device: torch.device, batch: SamplingBatch) -> SamplingBatch:
    def moved(value: torch.Tensor | None) -> torch.Tensor | None:
        return None if value is None else value.to(device)

    limits = {name: moved(getattr(batch, name)) for name in ("top_k", "top_p", "min_p")}
    return replace(batch, uniform=batch.uniform.to(device), **limits)


def check(probabilities: torch.Tensor, batch: SamplingBatch, device: torch.device) -> None:
    from quire_engine.kernels.gpu.sampling import draw_within

    found = draw_within(probabilities.to(device), on(device, batch)).cpu()
    kept = probabilities.clone()
    restrict(kept, batch.top_k, batch.top_p, batch.min_p)
    assert found.tolist() == draw(kept, batch.uniform).tolist()


@settings(deadline=None, max_examples=12)
@given(
    limits=st.lists(LIMITS, min_size=1, max_size=2),
    vocab_size=st.sampled_from([3, 64, 1500]),
    sharpness=st.sampled_from([0.3, 2.0, 9.0]),
    seed=st.integers(0, 999),
)
def test_limits_keep_what_they_keep_by_torch(
    device: torch.device, limits: list[tuple[int, float, float]], vocab_size: int, sharpness: float, seed: int
) -> None:
    logits = torch.randn(len(limits), vocab_size, generator=torch.Generator().manual_seed(seed)) * sharpness
    check(torch.softmax(logits, -1), batch_of(limits, vocab_size, seed), device)


@settings(deadline=None, max_examples=25)
@given(
    weights=st.lists(st.sampled_from([0.0, 1.0, 1.0, 2.0, 4.0]), min_size=1, max_size=9).filter(any),
    limit=LIMITS,
    seed=st.integers(0, 99),
)
def test_ties_are_all_kept_and_what_is_impossible_never_comes(
    device: torch.device, weights: list[float], limit: tuple[int, float, float], seed: int
) -> None:
    probabilities = torch.tensor([weights]) / sum(weights)
    check(probabilities, batch_of([limit], len(weights), seed), device)


@pytest.mark.parametrize("number", [0.0, 1.0 - 2.0**-53])
def test_the_ends_of_the_numbers_give_the_first_and_the_last_token_that_is_kept(
    device: torch.device, number: float
) -> None:
    from quire_engine.kernels.gpu.sampling import draw_within

    probabilities = torch.tensor([[0.0, 0.05, 0.5, 0.2, 0.25, 0.0]])
    batch = batch_of([(3, 1.0, 0.0)], 6, 0)
    batch.uniform = torch.tensor([number], dtype=torch.float64)
    assert draw_within(probabilities.to(device), on(device, batch)).tolist() == [2 if number == 0.0 else 4]
