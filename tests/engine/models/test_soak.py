"""Thousands of requests to a real model over a pool twenty times too small are answered as with room for all."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from quire_engine.config import EngineConfig
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineRequest
from quire_engine.engine import build_engine
from quire_engine.sampling_params import SamplingParams
from tests.engine.models.checkpoints import FAMILIES, VOCAB_SIZE, make_model, save

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

NUM_REQUESTS, MAX_NUM_SEQS, BLOCK_SIZE, LONGEST, MOST_TOKENS = 10_000, 64, 8, 48, 16
ENOUGH = MAX_NUM_SEQS * (LONGEST + MOST_TOKENS) // BLOCK_SIZE


@dataclass
class Answer:
    tokens: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)  # between the two likeliest tokens at each place
    beams: list[list[int]] = field(default_factory=list)
    finished: bool = False


def make_requests() -> list[EngineRequest]:
    rng = random.Random(0)
    beginnings = [[rng.randrange(VOCAB_SIZE) for _ in range(LONGEST)] for _ in range(4)]
    made: list[EngineRequest] = []
    while len(made) < NUM_REQUESTS:
        prompt = [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 16))]
        if rng.random() < 0.5:
            prompt = (rng.choice(beginnings)[: rng.randint(1, LONGEST)] + prompt)[:LONGEST]
        beams = rng.choice([2, 3]) if rng.random() < 1 / 40 else 0
        count = rng.randint(1, MOST_TOKENS)
        if beams:
            params = SamplingParams(n=beams, use_beam_search=True, max_tokens=count)
        else:
            params = SamplingParams(temperature=0.0, max_tokens=count, logprobs=2)
        priority = rng.randrange(3)
        for _ in range(4 if rng.random() < 0.1 else 1):
            made.append(EngineRequest(str(len(made)), prompt, params, 0.0, priority))
    return made[:NUM_REQUESTS]


def answer(core: EngineCore, requests: list[EngineRequest], abort_share: float) -> dict[str, Answer]:
    """The answers to all requests that were not aborted."""
    rng, waiting, answers = random.Random(1), requests[::-1], dict[str, Answer]()
    unfinished: dict[str, None] = {}
    eldest = waiting[-1]
    while waiting or core.has_work():
        while waiting and len(unfinished) < 2 * MAX_NUM_SEQS:
            request = waiting.pop()
            answers[request.request_id], unfinished[request.request_id] = Answer(), None
            eldest = eldest if request.prompt_token_ids is eldest.prompt_token_ids else request
            known = eldest is not request and eldest.request_id in unfinished
            core.add_request(eldest.another(request.request_id, request.params) if known else request)
        if rng.random() < abort_share:
            name = rng.choice([*unfinished])
            core.abort([name])
            del answers[name], unfinished[name]
        for output in core.step():
            own = answers[output.request_id]
            own.tokens += output.new_token_ids
            own.margins += [entry.top_logprobs[0] - entry.top_logprobs[1] for entry in output.logprobs or []]
            own.beams = [beam.token_ids for beam in output.beams or []]
            if output.finish_reason is not None:
                assert output.error is None
                own.finished = True
                del unfinished[output.request_id]
    core.check_integrity()
    assert (core.stats().kv_cache_usage, core.stats().swap_usage) == (0.0, 0.0)
    return answers


def same(found: Answer, wanted: Answer) -> bool:
    """Whether two answers agree up to a place where the model can hardly decide: GEMM shapes round differently."""
    differing = (i for i, (a, b) in enumerate(zip(found.tokens, wanted.tokens, strict=True)) if a != b)
    first = next(differing, None)
    return first is None or wanted.margins[first] < 1e-3


def test_a_real_model_answers_thousands_alike_under_pressure_and_with_room(tmp_path: Path) -> None:
    cls, config = FAMILIES["llama"]
    directory = save(make_model(cls, config()), tmp_path)
    requests = make_requests()

    def build(num_blocks: int, swap_space: float) -> EngineCore:
        settings = EngineConfig(
            model=str(directory),
            device="cpu",
            dtype="float32",
            block_size=BLOCK_SIZE,
            max_model_len=128,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=256,
            num_gpu_blocks_override=num_blocks,
            swap_space=swap_space,
            scheduling_policy="priority",
        )
        return build_engine(settings)[0]

    roomy = build(ENOUGH, 0.0)
    wanted = answer(roomy, requests, abort_share=0.0)
    assert roomy.stats().num_preemptions == 0
    for swap_space in (0.0, 0.01):
        core = build(ENOUGH // 20, swap_space)
        found = answer(core, requests, abort_share=0.02)
        assert core.stats().num_preemptions > NUM_REQUESTS // 20
        assert (core.stats().num_swaps > 0) == (swap_space > 0)
        assert all(own.finished for own in found.values()), "some were lost"
        differing = [
            name for name, own in found.items() if (own.tokens, own.beams) != (wanted[name].tokens, wanted[name].beams)
        ]
        assert len(differing) <= NUM_REQUESTS // 100
        assert all(same(found[name], wanted[name]) for name in differing)
