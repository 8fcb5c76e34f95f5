"""Penalties, biases and masks against transformers' own processors, and as histories grow."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from quire_engine.config import EngineConfig
from quire_engine.core.messages import EngineRequest
from quire_engine.core.step import NewSequence, ScheduledSequence
from quire_engine.engine import build_engine
from quire_engine.execution.sampling_state import SamplingState
from quire_engine.execution.token_table import TokenTable
from quire_engine.memory_plan.plan import SEEN_PAGE
from quire_engine.sampling.adjustments import FORBIDDEN
from quire_engine.sampling.sampler import sample, shape
from quire_engine.sampling_params import SamplingParams
from tests.engine.models.checkpoints import FAMILIES, MAX_MODEL_LEN, VOCAB_SIZE, make_model, mixed_prompts

pytestmark = pytest.mark.usefixtures("one_thread")

ANSWER = 20
EOS = 5


class OutputOnly(LogitsProcessor):
    """Shows another processor the output without the prompt, as vLLM does for bad words."""

    def __init__(self, inner: LogitsProcessor, num_prompt_tokens: int) -> None:
        self.inner, self.num_prompt_tokens = inner, num_prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self.inner(input_ids[:, self.num_prompt_tokens :], scores)  # type: ignore[no-any-return, operator]  # transformers says nothing of it


class Penalties(LogitsProcessor):
    """OpenAI's presence and frequency penalties, which transformers lacks."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counts = torch.bincount(input_ids[0], minlength=scores.shape[-1])
        return scores - self.params.frequency_penalty * counts - self.params.presence_penalty * (counts > 0)


def processors(params: SamplingParams, num_prompt_tokens: int) -> LogitsProcessorList:
    made = LogitsProcessorList()
    if params.logit_bias:
        made.append(SequenceBiasLogitsProcessor([[[t], b] for t, b in params.logit_bias.items()]))
    if params.repetition_penalty != 1.0:
        made.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    made.append(OutputOnly(Penalties(params), num_prompt_tokens))
    if params.bad_words_token_ids:
        made.append(OutputOnly(NoBadWordsLogitsProcessor(params.bad_words_token_ids), num_prompt_tokens))
    if params.min_tokens:
        made.append(MinNewTokensLengthLogitsProcessor(num_prompt_tokens, params.min_tokens, EOS))
    return made


CASES = [
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 0.7},
    {"presence_penalty": 1.5, "frequency_penalty": 0.5},
    {"frequency_penalty": -0.4},
    {"logit_bias": {3: 4.0, 9: -6.0, 127: 2.0}},
    {"min_tokens": 12},
    {"bad_words_token_ids": [[1], [2], [40, 41], [1, 2, 3]]},
    {
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
        "logit_bias": {5: 3.0, 7: 1.0},
        "bad_words_token_ids": [[7], [8, 9]],
        "min_tokens": 6,
    },
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_equal_the_references_at_every_length(case: dict[str, Any]) -> None:
    """One row is met anew at each length, as after a preemption; the other grows with each token, among others."""
    rng = random.Random(1)
    params = SamplingParams(max_tokens=None, **case)
    prompt = [rng.randrange(VOCAB_SIZE) for _ in range(90)]
    sequence = list(prompt)
    growing = SamplingState(4, VOCAB_SIZE, (EOS,))
    growing.add(0, NewSequence("other", 1, SamplingParams(repetition_penalty=2.0), 0, token_ids=[3]))
    growing.add(2, NewSequence("grows", len(prompt), params, 0, token_ids=prompt))
    growing.follow([(2, ScheduledSequence("grows", prompt[:64], 0, [], samples=False))])
    growing.follow([(2, ScheduledSequence("grows", prompt[64:], 64, [], samples=True))])
    for _ in range(70):
        logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(rng.randrange(1000))) * 3
        expected = processors(params, len(prompt))(torch.tensor([sequence]), logits.clone())
        met = SamplingState(1, VOCAB_SIZE, (EOS,))
        met.add(0, NewSequence("met", len(prompt), params, 0, token_ids=list(sequence)))
        for state, row in ((growing, 2), (met, 0)):
            got = logits.clone()
            shape(got, state.batch([row], [len(sequence)]))
            got[got == FORBIDDEN] = -torch.inf
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        # now and then a token of a bad word, so that these begin
        sequence.append(rng.choice([1, 2, 40, 8, rng.randrange(VOCAB_SIZE)]))
        step = ScheduledSequence("grows", sequence[-1:], len(sequence) - 1, [], samples=True)
        growing.follow([(2, step)])


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    cls, config = FAMILIES["llama"]
    made = make_model(cls, config())
    made.config.eos_token_id = EOS
    made.generation_config.eos_token_id = EOS
    return made


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 19},
        {"num_gpu_blocks_override": 22, "max_num_batched_tokens": 40},
        {"num_gpu_blocks_override": 22, "swap_space": 0.01},
        {"max_num_seqs": 2, "enable_prefix_caching": False},
    ],
    ids=str,
)
def test_greedy_answers_equal_the_references_whatever_the_batch(
    model: PreTrainedModel, model_dir: Path, settings: dict[str, Any]
) -> None:
    prompts = mixed_prompts(16, 60, seed=8)
    options = {"block_size": 8, "max_model_len": MAX_MODEL_LEN, "num_gpu_blocks_override": 1024} | settings
    core, _ = build_engine(EngineConfig(model=str(model_dir), device="cpu", **options))
    params = [SamplingParams(temperature=0.0, max_tokens=ANSWER, **CASES[i % len(CASES)]) for i in range(16)]
    made: dict[str, list[int]] = {str(i): [] for i in range(16)}
    for i, prompt in enumerate(prompts):
        core.add_request(EngineRequest(str(i), prompt, params[i]))
    while core.has_work():
        for output in core.step():
            made[output.request_id] += output.new_token_ids
    assert (core.stats().num_preemptions > 0) == ("num_gpu_blocks_override" in settings)
    for i, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=ANSWER,
            do_sample=False,
            logits_processor=processors(params[i], len(prompt)),
        )
        assert made[str(i)] == expected[0, len(prompt) :].tolist(), CASES[i % len(CASES)]


def test_where_all_that_is_allowed_is_forbidden_an_allowed_token_comes_all_the_same() -> None:
    for temperature in (0.0, 1.0):
        params = SamplingParams(
            temperature=temperature, allowed_token_ids=[5, 9], bad_words_token_ids=[[9]], min_tokens=3
        )
        state = SamplingState(1, 12, eos_token_ids=(5,))
        state.add(0, NewSequence("r", 4, params, seed=0))
        assert sample(torch.randn(1, 12), state.batch([0], [4])).item() in (5, 9)


def test_a_bad_word_of_a_token_that_the_model_lacks_is_passed_over() -> None:
    params = SamplingParams(temperature=0.0, bad_words_token_ids=[[12], [3, 40], [7]])
    state = SamplingState(1, 12, ())
    state.add(0, NewSequence("r", 1, params, seed=0, token_ids=[1, 3]))
    logits = torch.zeros(1, 12)
    logits[0, 7], logits[0, 8] = 2.0, 1.0
    assert sample(logits, state.batch([0], [2])).item() == 8


def test_a_row_that_is_taken_over_keeps_nothing_of_the_request_before() -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    state = SamplingState(1, 12, (3,))
    everything = SamplingParams(
        logit_bias={1: 5.0},
        repetition_penalty=2.0,
        bad_words_token_ids=[[2]],
        allowed_token_ids=[1],
        min_tokens=4,
        logprobs=2,
    )
    state.add(0, NewSequence("before", 1, everything, seed=0, token_ids=[1, 2]))
    state.remove(0)
    for params in (SamplingParams(), SamplingParams(presence_penalty=1.0)):
        state.add(0, NewSequence("after", 1, params, seed=0, token_ids=[4]))
        batch, got = state.batch([0], [1]), logits.clone()
        shape(got, batch)
        assert torch.equal(got, logits)
        assert not batch.logprobs
        state.remove(0)


def test_the_table_of_seen_tokens_goes_with_the_last_request_that_needs_it() -> None:
    table = TokenTable(torch.device("cpu"), num_pages=6)
    params = SamplingParams(repetition_penalty=2.0)
    for row in range(3):
        table.add(row, NewSequence("r", 500, params, 0, token_ids=list(range(500))))
    for row in range(3):
        assert table.num_bytes == 6 * SEEN_PAGE * 12
        table.remove(row)
    assert table.num_bytes == 0
    table.add(1, NewSequence("r", 2, params, 0, token_ids=[4, 5]))
    adjusted = table.adjustments([1])
    assert adjusted is not None
    assert adjusted.num_tokens.tolist() == [2]
    assert adjusted.seen.token_ids[adjusted.pages, :2].tolist() == [[4, 5]]
