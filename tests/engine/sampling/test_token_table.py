"""Penalties and biases as requests come, grow and go, on pages of many: each row's logits are those done by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_engine.core.step import NewSequence, ScheduledSequence
from quire_engine.execution.sampling_state import SamplingState
from quire_engine.memory_plan.plan import SEEN_PAGE, seen_pages
from quire_engine.sampling.sampler import shape
from quire_engine.sampling_params import SamplingParams

ROWS, VOCAB_SIZE, LONGEST = 4, 3 * SEEN_PAGE + 10, 3 * SEEN_PAGE


@dataclass
class Held:
    """A request by itself."""

    params: SamplingParams
    num_prompt_tokens: int
    token_ids: list[int]

    def adjusted(self, logits: torch.Tensor) -> torch.Tensor:
        """`logits` [vocab_size] one token after the other."""
        params, output = self.params, self.token_ids[self.num_prompt_tokens :]
        counts = torch.bincount(torch.tensor(output, dtype=torch.int64), minlength=VOCAB_SIZE)
        logits = logits.clone()
        for token, bias in (params.logit_bias or {}).items():
            logits[token] += bias
        for token in set(self.token_ids):
            value = logits[token]
            logits[token] = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        return logits - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)


params = st.builds(
    SamplingParams,
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.7]),
    frequency_penalty=st.sampled_from([0.0, 0.3]),
    presence_penalty=st.sampled_from([0.0, -0.4]),
    logit_bias=st.none() | st.dictionaries(st.integers(0, VOCAB_SIZE - 1), st.floats(-9, 9, width=32), max_size=5),
    max_tokens=st.just(None),
)
# Tokens from `first` on, so that pages fill quickly.
runs = st.tuples(st.integers(0, VOCAB_SIZE), st.sampled_from([1, 1, 2, SEEN_PAGE - 1, SEEN_PAGE, SEEN_PAGE + 1]))
events = st.tuples(st.integers(0, ROWS - 1), st.sampled_from(["come", "grow", "grow", "go"]), runs, params)


@pytest.mark.parametrize("at_once", [1, 2, 1024])
@settings(max_examples=40, deadline=None)
@given(happening=st.lists(events, min_size=4, max_size=20))
def test_logits_are_those_done_by_hand_whoever_came_and_went(at_once: int, happening: list[tuple]) -> None:  # type: ignore[type-arg]  # of several lengths
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quire_engine.sampling.adjustments.ADJUSTED_PAGES", at_once)
        state = SamplingState(ROWS, VOCAB_SIZE, (), longest=LONGEST)
        held: dict[int, Held] = {}
        for row, what, (first, count), own in happening:
            tokens = [(first + i) % VOCAB_SIZE for i in range(count)]
            if what == "come" and row not in held:
                held[row] = Held(own, count, tokens)
                state.add(row, NewSequence(str(row), count, own, 0, token_ids=list(tokens)))
            elif what == "go" and row in held:
                del held[row]
                state.remove(row)
            elif what == "grow" and row in held and len(held[row].token_ids) + count <= LONGEST:
                one = held[row]
                start = len(one.token_ids)
                one.token_ids += tokens
                state.follow([(row, ScheduledSequence(str(row), tokens, start, [], samples=True))])
            rows = sorted(held)
            logits = torch.randn(len(rows), VOCAB_SIZE, generator=torch.Generator().manual_seed(1)) * 3
            expected = [held[r].adjusted(one) for r, one in zip(rows, logits, strict=True)]
            shape(logits, state.batch(rows, [len(held[r].token_ids) for r in rows]))
            for got, wanted in zip(logits, expected, strict=True):
                torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-5)


def test_requests_of_the_greatest_length_with_the_most_biases_have_their_pages_together() -> None:
    """Neither more tokens than there are nor more than a sequence and its biases can hold."""
    vocab_size = LONGEST + 2000
    state = SamplingState(ROWS, vocab_size, (), longest=LONGEST)
    biases = {vocab_size - 1 - i: 1.0 for i in range(1024)}
    params = SamplingParams(logit_bias=biases, repetition_penalty=2.0)
    for row in range(ROWS):
        state.add(row, NewSequence(str(row), LONGEST, params, 0, token_ids=list(range(LONGEST))))
    adjustments = state.batch(list(range(ROWS)), [LONGEST] * ROWS).adjustments
    assert adjustments is not None
    assert int(adjustments.num_tokens.sum()) == ROWS * (LONGEST + 1024)
    assert len(set(adjustments.pages.tolist())) == len(adjustments.pages) <= ROWS * seen_pages(vocab_size, LONGEST)
    assert seen_pages(1000, None) == seen_pages(1000, 10**6) == 4
