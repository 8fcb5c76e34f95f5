"""A request's seed gives the same tokens however it was batched, chunked or preempted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quire_engine.config import EngineConfig
from quire_engine.core.messages import EngineRequest
from quire_engine.engine import build_engine
from quire_engine.sampling_params import SamplingParams
from tests.engine.models.checkpoints import MAX_MODEL_LEN, mixed_prompts

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = mixed_prompts(16, 60)


def answers(model_dir: Path, seeds: list[int | None], **settings: Any) -> tuple[list[list[int]], int]:
    """The tokens of each prompt, and the number of preemptions."""
    options = {"block_size": 8, "max_model_len": MAX_MODEL_LEN, "num_gpu_blocks_override": 1024} | settings
    core, _ = build_engine(EngineConfig(model=str(model_dir), device="cpu", **options))
    made: dict[str, list[int]] = {}
    for i, (prompt, seed) in enumerate(zip(PROMPTS, seeds, strict=True)):
        made[str(i)] = []
        params = SamplingParams(temperature=0.9, top_p=0.95, top_k=30, seed=seed, max_tokens=16)
        core.add_request(EngineRequest(str(i), prompt, params))
    while core.has_work():
        for output in core.step():
            made[output.request_id] += output.new_token_ids
    return [made[str(i)] for i in range(len(PROMPTS))], core.stats().num_preemptions


def test_the_same_seed_gives_the_same_tokens_however_the_request_ran(model_dir: Path) -> None:
    seeds: list[int | None] = [100 + i for i in range(16)]
    expected, _ = answers(model_dir, seeds)
    assert answers(model_dir, seeds, max_num_seqs=1)[0] == expected
    assert answers(model_dir, seeds, max_num_batched_tokens=20)[0] == expected
    assert answers(model_dir, seeds, enable_prefix_caching=False)[0] == expected
    preempted, num_preemptions = answers(model_dir, seeds, num_gpu_blocks_override=20)
    assert num_preemptions > 0
    assert preempted == expected


def test_another_seed_gives_other_tokens(model_dir: Path) -> None:
    first, _ = answers(model_dir, [1] * 16)
    second, _ = answers(model_dir, [2] * 16)
    assert sum(a == b for a, b in zip(first, second, strict=True)) == 0


def test_requests_without_a_seed_follow_the_engines(model_dir: Path) -> None:
    none: list[int | None] = [None] * 16
    first, _ = answers(model_dir, none, seed=5)
    assert answers(model_dir, none, seed=5)[0] == first
    assert answers(model_dir, none, seed=6)[0] != first
