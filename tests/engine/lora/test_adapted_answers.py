"""Greedy answers with adapters are peft's, token for token, whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from quire_engine.config import EngineConfig
from quire_engine.core.messages import EngineRequest
from quire_engine.loading.checkpoint import Checkpoint
from quire_engine.sampling_params import SamplingParams
from quire_engine.starting.adapters import adapter_reader
from quire_engine.starting.model_choice import model_spec
from tests.engine.lora.adapters import MODULES, NEW_TOKENS, PROMPTS, Adapted, answer, make, make_adapter, start

pytestmark = pytest.mark.usefixtures("one_thread")

LLAMA = "LlamaForCausalLM: grouped heads"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return make(tmp_path_factory.mktemp("llama"), LLAMA)


@pytest.mark.parametrize("caching", [True, False], ids=["cached", "not cached"])
def test_adapters_and_the_base_in_one_batch_answer_as_peft_does(llama: Adapted, caching: bool) -> None:
    core = start(llama, enable_prefix_caching=caching)
    assert answer(core, [None, "a", "b"]) == llama.answers
    assert answer(core, ["b", None, "a"]) == llama.answers  # from the cache, where there is one


@pytest.mark.parametrize("case", [case for case in MODULES if case != LLAMA])
def test_modules_that_hold_several_of_ours_are_taken_apart(case: str, tmp_path: Path) -> None:
    adapted = make(tmp_path, case)
    assert answer(start(adapted), [None, "a", "b"]) == adapted.answers


@pytest.mark.parametrize("max_loras", [1, 2])
def test_where_fewer_may_run_at_once_than_are_asked_for_all_are_answered(llama: Adapted, max_loras: int) -> None:
    core = start(llama, max_loras=max_loras, max_num_seqs=4)
    assert answer(core, ["a", None, "b"]) == llama.answers


@pytest.mark.parametrize("swap_space", [0.0, 0.001], ids=["computed anew", "swapped"])
def test_requests_that_are_preempted_go_on_with_their_adapter(llama: Adapted, swap_space: float) -> None:
    core = start(llama, num_gpu_blocks_override=16, swap_space=swap_space)
    assert answer(core, [None, "a", "b"]) == llama.answers
    assert core.stats().num_preemptions > 0


def test_answers_to_one_prompt_have_its_adapter(llama: Adapted) -> None:
    core, params = start(llama), SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS)
    first = EngineRequest("first", PROMPTS[0], params, adapter="a")
    answers: dict[str, list[int]] = {"first": [], "second": []}
    for request in (first, first.another("second", params)):
        core.add_request(request)
    while core.has_work():
        for output in core.step():
            answers[output.request_id] += output.new_token_ids
    assert answers == dict.fromkeys(answers, llama.answers["a"][0])


def test_beams_have_the_adapter_of_their_search(llama: Adapted, tmp_path: Path) -> None:
    params = SamplingParams(use_beam_search=True, n=3, best_of=3, temperature=0.0, max_tokens=6)
    adapted: Any = make_adapter(llama.model, tmp_path, seed=0, target_modules=MODULES[LLAMA])
    ids = PROMPTS[1]
    expected = adapted.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        num_beams=3,
        num_return_sequences=3,
        do_sample=False,
        max_new_tokens=6,
    )[:, len(ids) :].tolist()
    core, beams = start(llama), []
    core.add_request(EngineRequest("beams", ids, params, adapter="a"))
    while core.has_work():
        for output in core.step():
            beams += output.beams or []
    assert [beam.token_ids for beam in beams] == expected


def test_one_that_takes_the_place_of_another_shares_no_pages_with_it(llama: Adapted) -> None:
    core = start(llama)
    assert answer(core, ["a"])["a"] == llama.answers["a"]
    core.load_adapter("a", str(llama.folders["b"]), replace_it=True)
    assert answer(core, ["a"])["a"] == llama.answers["b"]


def test_requests_of_an_adapter_that_is_unloaded_end_with_it(llama: Adapted) -> None:
    core, tokens = start(llama), []
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS)
    core.add_request(EngineRequest("runs", PROMPTS[0], params, adapter="a"))
    core.step()
    core.unload_adapter("a")
    core.add_request(EngineRequest("late", PROMPTS[0], params, adapter="a"))
    errors = {}
    while core.has_work():
        for output in core.step():
            errors[output.request_id] = output.error
            tokens += output.new_token_ids
    assert tokens == llama.answers["a"][0][-len(tokens) :]
    assert len(tokens) >= NEW_TOKENS - 1
    assert errors == {"runs": None, "late": "the adapter 'a' is not loaded: load it, or leave it out"}
    core.load_adapter("a", str(llama.folders["a"]))
    assert answer(core, ["a"])["a"] == llama.answers["a"]


def test_the_plan_has_room_for_the_largest_file(llama: Adapted, tmp_path: Path) -> None:
    make_adapter(llama.model, tmp_path, target_modules=MODULES[LLAMA], r=16)
    config = EngineConfig(model=str(llama.directory), enable_lora=True, max_lora_rank=16, dtype="float32")
    reader = adapter_reader(config, model_spec(config, Checkpoint.open(config.model)), pools=False)
    assert reader is not None
    assert reader.num_bytes == len(reader.read(str(tmp_path)).content)


@pytest.mark.usefixtures("in_use")
def test_steps_that_only_decode_are_adapted_as_prompts_are_in_bfloat16_too(llama: Adapted) -> None:
    """Where all layers of a model without adapters would run by one call."""
    core = start(llama, dtype="bfloat16", enable_prefix_caching=False)
    decoded = answer(core, ["a"], PROMPTS[:4])["a"]
    begun = [(prompt, tokens, i) for prompt, tokens in zip(PROMPTS, decoded, strict=False) for i in range(NEW_TOKENS)]
    again = answer(core, ["a"], [prompt + tokens[:i] for prompt, tokens, i in begun], max_tokens=1)["a"]
    same = sum(first == [tokens[i]] for first, (_, tokens, i) in zip(again, begun, strict=True))
    assert same > len(begun) * 0.7  # what rounds otherwise may choose otherwise
