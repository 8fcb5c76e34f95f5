"""Logits that are NaN or infinite give no token, and leave the other rows of the batch alone."""

from __future__ import annotations

import math
import random

import pytest
import torch

from quire_engine.core.step import NO_TOKEN, NewSequence
from quire_engine.execution.sampling_state import SamplingState
from quire_engine.sampling.sampler import choose
from quire_engine.sampling_params import SamplingParams

VOCAB_SIZE = 3000  # more than top-k and top-p look at first
NAN, INF = math.nan, math.inf


def state_of(rows: list[SamplingParams]) -> SamplingState:
    state = SamplingState(len(rows), VOCAB_SIZE, ())
    for row, params in enumerate(rows):
        state.add(row, NewSequence(str(row), 3, params, seed=row, token_ids=[1, 2, 3]))
    return state


PARAMS = {
    "greedy": SamplingParams(temperature=0.0),
    "sampled": SamplingParams(),
    "top-p": SamplingParams(top_p=0.9),
    "flat top-p": SamplingParams(temperature=100.0, top_p=0.9),
    "great top-k": SamplingParams(top_k=2000, top_p=0.99),
    "min-p": SamplingParams(min_p=0.1),
    "logprobs": SamplingParams(temperature=0.0, logprobs=3),
    "penalties": SamplingParams(repetition_penalty=1.5, presence_penalty=1.0),
}


@pytest.mark.parametrize("mixed", [False, True], ids=["alike", "with other kinds"])
@pytest.mark.parametrize("name", PARAMS)
def test_a_row_with_a_nan_or_an_infinity_anywhere_gives_no_token_and_others_give_theirs(name: str, mixed: bool) -> None:
    rng, rows = random.Random(name), 8
    params = [PARAMS[name]] * rows if not mixed else [PARAMS[name], *PARAMS.values()][:rows]
    state = state_of(params)
    batch = lambda: state.batch(list(range(rows)), [3] * rows)  # noqa: E731  # a fresh one each time
    good = torch.randn(rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(1)) * 3
    expected = choose(good.clone(), batch()).token_ids.tolist()
    for wrong in (NAN, INF, [NAN] * VOCAB_SIZE, [-INF] * VOCAB_SIZE, [INF] * VOCAB_SIZE):
        bad = good.clone()
        places = rng.sample(range(rows), 3)
        for row in places:
            at = slice(None) if isinstance(wrong, list) else rng.randrange(4, VOCAB_SIZE)
            bad[row, at] = torch.tensor(wrong)
        found = choose(bad, batch())
        assert found.token_ids.tolist() == [NO_TOKEN if i in places else token for i, token in enumerate(expected)]


def test_a_few_tokens_that_cannot_come_are_no_fault() -> None:
    state = state_of([SamplingParams(), SamplingParams(temperature=0.0)])
    logits = torch.full((2, VOCAB_SIZE), -INF)
    logits[:, 7] = 1.0
    assert choose(logits, state.batch([0, 1], [3, 3])).token_ids.tolist() == [7, 7]
