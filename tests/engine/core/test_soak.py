"""Ten thousand requests over a pool twenty times too small: none is lost, no answer changes, every page comes back."""

from __future__ import annotations

import random

import pytest

from quire_engine.core.core_config import CoreConfig
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineOutput, EngineRequest
from quire_engine.sampling_params import SamplingParams
from tests.engine.core.fake_model import VOCAB_SIZE, PagedExecutor, generate, search

NUM_REQUESTS, MAX_NUM_SEQS, BLOCK_SIZE = 10_000, 64, 4
LONGEST, MOST_TOKENS = 24, 12
# Where 64 requests of the greatest length would all have their pages.
ENOUGH = MAX_NUM_SEQS * (LONGEST + MOST_TOKENS) // BLOCK_SIZE
EOS = (11, 12)


def make_requests(seed: int) -> list[EngineRequest]:
    """Prompts of which many begin alike or are asked four times, three priorities, and one search in forty."""
    rng = random.Random(seed)
    beginnings = [[rng.randrange(VOCAB_SIZE) for _ in range(LONGEST)] for _ in range(5)]
    made: list[EngineRequest] = []
    while len(made) < NUM_REQUESTS:
        prompt = [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 8))]
        if rng.random() < 0.5:
            prompt = (rng.choice(beginnings)[: rng.randint(1, LONGEST)] + prompt)[:LONGEST]
        beams = rng.choice([2, 3, 4]) if rng.random() < 1 / 40 else 0
        params = SamplingParams(
            n=beams or 1,
            use_beam_search=beams > 0,
            max_tokens=rng.randint(1, 4 if beams else MOST_TOKENS),
            ignore_eos=rng.random() < 0.5,
        )
        priority, salt = rng.randrange(3), "salt" if rng.random() < 0.1 else None
        for _ in range(4 if rng.random() < 0.1 else 1):
            made.append(EngineRequest(str(len(made)), prompt, params, 0.0, priority, salt))
    return made[:NUM_REQUESTS]


def expected(request: EngineRequest) -> list[list[int]]:
    """What a request is answered that has the engine for itself."""
    params, prompt = request.params, request.prompt_token_ids
    eos = () if params.ignore_eos else EOS
    assert params.max_tokens is not None
    if params.use_beam_search:
        return search(prompt, params.n, params.max_tokens, eos, n=params.n)
    return [generate(prompt, params.max_tokens, eos)]


@pytest.mark.parametrize("num_swap_blocks", [0, ENOUGH // 10], ids=["recompute", "swap"])
def test_ten_thousand_requests_over_a_pool_twenty_times_too_small(num_swap_blocks: int) -> None:
    config = CoreConfig(
        num_blocks=ENOUGH // 20,
        num_swap_blocks=num_swap_blocks,
        block_size=BLOCK_SIZE,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=64,
        max_model_len=64,
        use_priority=True,
        vocab_size=VOCAB_SIZE,
        eos_token_ids=EOS,
    )
    executor = PagedExecutor(config)
    core, rng = EngineCore(executor, config), random.Random(1)
    requests = {request.request_id: request for request in make_requests(seed=0)}
    waiting, unfinished, aborted = list(requests.values())[::-1], dict[str, None](), set[str]()
    tokens: dict[str, list[int]] = {name: [] for name in requests}
    ends: dict[str, EngineOutput] = {}
    eldest = waiting[-1]
    while waiting or core.has_work():
        while waiting and len(unfinished) < 2 * MAX_NUM_SEQS:
            request = waiting.pop()
            eldest = eldest if request.prompt_token_ids is eldest.prompt_token_ids else request
            known = eldest is not request and eldest.request_id in unfinished
            core.add_request(eldest.another(request.request_id, request.params) if known else request)
            unfinished[request.request_id] = None
        if rng.random() < 0.02:
            name = rng.choice([*unfinished])
            core.abort([name])
            aborted.add(name)
            del unfinished[name]
        for output in core.step():
            tokens[output.request_id] += output.new_token_ids
            if output.finish_reason is not None:
                ends[output.request_id] = output
                del unfinished[output.request_id]
        executor.steps.clear()
        if rng.random() < 0.05:
            core.check_integrity()

    core.check_integrity()
    stats = core.stats()
    assert (stats.kv_cache_usage, stats.swap_usage) == (0.0, 0.0)
    assert ends.keys() | aborted == requests.keys(), "some were lost"
    assert not ends.keys() & aborted
    assert stats.num_preemptions > 1000
    assert (stats.num_swaps > 1000) == (num_swap_blocks > 0)
    for name, end in ends.items():
        assert end.error is None
        found = [tokens[name]] if end.beams is None else [beam.token_ids for beam in end.beams]
        assert found == expected(requests[name]), name
