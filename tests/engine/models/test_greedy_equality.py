"""Greedy answers in float32 are transformers' own, token for token, however the requests were scheduled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import transformers

from quire_engine.config import EngineConfig
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineRequest
from quire_engine.engine import build_engine
from quire_engine.sampling_params import SamplingParams
from tests.engine.models.checkpoints import (
    FAMILIES,
    MAX_MODEL_LEN,
    greedy_reference,
    make_model,
    mixed_prompts,
    save,
)

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_PROMPTS, LONGEST, NEW_TOKENS = 64, 90, 14
BUDGETS: dict[str, dict[str, Any]] = {
    "chunked": {"max_num_batched_tokens": 512},
    "tiny chunks": {"max_num_batched_tokens": 24},
    "whole prompts": {"enable_chunked_prefill": False, "max_num_batched_tokens": MAX_MODEL_LEN},
}
ROOMS: dict[str, dict[str, Any]] = {"room for all": {"num_gpu_blocks_override": 1024}, "preempted": {}}


@dataclass
class Reference:
    directory: Path
    prompts: list[list[int]]
    answers: list[list[int]]


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> dict[str, Reference]:
    transformers.utils.logging.disable_progress_bar()
    made = {}
    for name, (cls, config) in FAMILIES.items():
        model = make_model(cls, config())
        prompts = mixed_prompts(NUM_PROMPTS, LONGEST)
        directory = save(model, tmp_path_factory.mktemp(name))
        made[name] = Reference(directory, prompts, greedy_reference(model, prompts, NEW_TOKENS))
    return made


def answer(core: EngineCore, prompts: list[list[int]], count: int = NEW_TOKENS) -> list[list[int]]:
    params = SamplingParams(temperature=0.0, max_tokens=count)
    answers: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        answers[str(i)] = []
        core.add_request(EngineRequest(str(i), prompt, params))
    while core.has_work():
        for output in core.step():
            assert output.error is None
            answers[output.request_id] += output.new_token_ids
        core.check_integrity()
    assert core.stats().kv_cache_usage == 0.0
    return [answers[str(i)] for i in range(len(prompts))]


def build(directory: Path, **changes: Any) -> EngineCore:
    settings = {"block_size": 8, "max_model_len": MAX_MODEL_LEN, "num_gpu_blocks_override": 36} | changes
    core, _ = build_engine(EngineConfig(model=str(directory), device="cpu", dtype="float32", **settings))
    return core


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cache", "no cache"])
def test_64_prompts_at_once_are_answered_as_transformers_answers_each_alone(
    references: dict[str, Reference], family: str, room: str, budget: str, prefix_caching: bool
) -> None:
    reference = references[family]
    core = build(reference.directory, enable_prefix_caching=prefix_caching, **BUDGETS[budget], **ROOMS[room])
    assert answer(core, reference.prompts) == reference.answers
    # Mistral's window frees pages as fast as the answers take new ones.
    assert (core.stats().num_preemptions > 0) == (room == "preempted" and family != "mistral")
    assert (core.stats().prefix_cache_hits > 0) == prefix_caching


@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cache", "no cache"])
def test_pages_that_were_swapped_out_come_back_as_they_were(
    references: dict[str, Reference], prefix_caching: bool
) -> None:
    reference = references["qwen3"]
    core = build(reference.directory, enable_prefix_caching=prefix_caching, swap_space=0.01)
    assert answer(core, reference.prompts) == reference.answers
    assert core.stats().num_preemptions > 0
    assert core.stats().num_swaps > 0


@pytest.mark.parametrize("swap_space", [0.0, 0.01], ids=["recompute", "swap"])
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cache", "no cache"])
def test_requests_give_way_without_the_pages_that_have_left_their_window(
    tmp_path: Path, swap_space: float, prefix_caching: bool
) -> None:
    cls, config = FAMILIES["mistral"]
    model, prompts = make_model(cls, config(), seed=2), mixed_prompts(12, 10, seed=2)
    core = build(
        save(model, tmp_path), num_gpu_blocks_override=17, swap_space=swap_space, enable_prefix_caching=prefix_caching
    )
    assert answer(core, prompts, 50) == greedy_reference(model, prompts, 50)
    assert core.stats().num_preemptions > 0
    assert (core.stats().num_swaps > 0) == (swap_space > 0)


def test_a_checkpoint_of_several_files_is_answered_alike(tmp_path: Path) -> None:
    model = make_model(FAMILIES["llama"][0], FAMILIES["llama"][1]())
    save(model, tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    prompts = mixed_prompts(6, LONGEST)
    assert answer(build(tmp_path), prompts) == greedy_reference(model, prompts, NEW_TOKENS)


def test_a_second_round_reads_the_first_rounds_pages(references: dict[str, Reference]) -> None:
    reference = references["mistral"]
    core = build(reference.directory, num_gpu_blocks_override=1024)
    answer(core, reference.prompts)
    hits = core.stats().prefix_cache_hits
    assert answer(core, reference.prompts) == reference.answers
    reusable = sum((len(p) - 1) // 8 * 8 for p in reference.prompts)
    assert core.stats().prefix_cache_hits - hits == reusable
