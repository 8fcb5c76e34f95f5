"""What the core answers, request by request."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from quire_engine.core.core_config import CoreConfig
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineOutput, EngineRequest
from quire_engine.core.rotation import RotationByLength
from quire_engine.core.step import Step, StepResult
from quire_engine.sampling_params import SamplingParams
from tests.engine.core.fake_model import VOCAB_SIZE, PagedExecutor, Stages, generate

CONFIG = CoreConfig(
    num_blocks=32, block_size=4, max_num_seqs=8, max_num_batched_tokens=16, max_model_len=64, vocab_size=VOCAB_SIZE
)


def make_core(**changes: object) -> tuple[EngineCore, PagedExecutor]:
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]  # mixed values
    executor = PagedExecutor(config)
    return EngineCore(executor, config), executor


def request(
    name: str, prompt: list[int], priority: int = 0, salt: str | None = None, **params: object
) -> EngineRequest:
    params = {"ignore_eos": True, "max_tokens": 4} | params
    return EngineRequest(name, prompt, SamplingParams(**params), priority=priority, cache_salt=salt)  # type: ignore[arg-type]  # mixed values


def run(core: EngineCore) -> dict[str, list[EngineOutput]]:
    outputs: dict[str, list[EngineOutput]] = {}
    while core.has_work():
        for output in core.step():
            outputs.setdefault(output.request_id, []).append(output)
        core.check_integrity()
    return outputs


def tokens(outputs: list[EngineOutput]) -> list[int]:
    return [t for o in outputs for t in o.new_token_ids]


@pytest.mark.parametrize(
    ("changes", "prompt", "flag"),
    [
        ({"max_model_len": 8}, [1] * 8, "--max-model-len"),
        ({"num_blocks": 2}, [1] * 8, "--num-gpu-blocks-override"),
        ({"enable_chunked_prefill": False}, [1] * 16, "--max-num-batched-tokens"),
        ({}, [], "prompt is empty"),
        ({}, [VOCAB_SIZE], f"between 0 and {VOCAB_SIZE - 1}"),
        ({}, ["x"], "prompt_token_ids[0]: Expected `int`"),
    ],
)
def test_a_request_that_can_never_run_is_answered_and_the_others_go_on(
    changes: dict[str, object], prompt: list[int], flag: str
) -> None:
    core, _ = make_core(**changes)
    core.add_request(request("bad", prompt))
    core.add_request(request("good", [1, 2, 3]))
    outputs = run(core)
    assert [o.finish_reason for o in outputs["bad"]] == ["error"]
    assert flag in (outputs["bad"][0].error or "")
    assert tokens(outputs["good"]) == generate([1, 2, 3], 4)


def test_the_longest_prompt_that_fits_gets_one_token() -> None:
    core, _ = make_core(max_model_len=8)
    core.add_request(request("r", [1] * 7, max_tokens=None))
    outputs = run(core)["r"]
    assert tokens(outputs) == generate([1] * 7, 1)
    assert outputs[-1].finish_reason == "length"


def test_a_prompt_computed_before_comes_from_the_cache_up_to_its_last_block() -> None:
    core, executor = make_core()
    core.add_request(request("first", [1] * 12))
    run(core)
    executor.steps.clear()
    core.add_request(request("again", [1] * 12))
    outputs = run(core)["again"]
    assert outputs[0].num_cached_tokens == 8
    assert executor.steps[0].num_tokens == 4
    assert tokens(outputs) == generate([1] * 12, 4)
    assert (core.stats().prefix_cache_queries, core.stats().prefix_cache_hits) == (24, 8)


def test_requests_of_one_prompt_that_arrive_together_share_its_pages() -> None:
    core, executor = make_core()
    for i in range(4):
        core.add_request(request(str(i), [5] * 9))
    outputs = run(core)
    assert executor.steps[0].num_tokens == 9 + 3 * 1
    assert [tokens(outputs[str(i)]) for i in range(4)] == [generate([5] * 9, 4)] * 4


def test_a_salt_keeps_the_cache_of_others_out_of_reach() -> None:
    core, _ = make_core()
    core.add_request(request("a", [1] * 12, salt="a"))
    core.add_request(request("b", [1] * 12, salt="b"))
    assert [o[0].num_cached_tokens for o in run(core).values()] == [0, 0]


def test_a_long_prompt_does_not_hold_up_requests_that_decode() -> None:
    core, executor = make_core(max_num_batched_tokens=8)
    core.add_request(request("short", [1, 2], max_tokens=10))
    core.step()
    core.add_request(request("long", [3] * 40))
    for _ in range(5):
        core.step()
        assert executor.steps[-1].scheduled[0].request_id == "short"
        assert executor.steps[-1].num_tokens == 8


def test_without_chunking_a_prompt_runs_whole() -> None:
    core, executor = make_core(enable_chunked_prefill=False)
    for i in range(3):
        core.add_request(request(str(i), [i] * 10))
    run(core)
    prompts = [s for step in executor.steps for s in step.scheduled if s.start == 0]
    assert [len(s.token_ids) for s in prompts] == [10, 10, 10]


def test_the_newest_request_gives_way_and_takes_its_old_place_in_the_line() -> None:
    core, executor = make_core(num_blocks=8, enable_prefix_caching=False)
    for i in range(3):
        core.add_request(request(str(i), [i] * 10, max_tokens=12))
    outputs = run(core)
    assert core.stats().num_preemptions > 0
    # request 2 waited at first, for want of pages: 1 is the newest that ran
    assert [n.request_id for step in executor.steps for n in step.new] == ["0", "1", "1", "2"]
    assert [tokens(outputs[str(i)]) for i in range(3)] == [generate([i] * 10, 12) for i in range(3)]


def test_a_lower_priority_gives_way_before_a_newer_request() -> None:
    core, _ = make_core(num_blocks=8, enable_prefix_caching=False, use_priority=True)
    core.add_request(request("unimportant", [1] * 10, priority=5, max_tokens=12))
    core.step()
    core.add_request(request("important", [2] * 10, priority=0, max_tokens=12))
    preempted = []
    while core.has_work():
        core.step()
        preempted += core._scheduler.preempted
    assert preempted == ["unimportant"]


def test_priorities_count_only_under_the_priority_policy() -> None:
    for use_priority, first in ((True, "b"), (False, "a")):
        core, executor = make_core(max_num_seqs=1, use_priority=use_priority)
        core.add_request(request("a", [1], priority=1))
        core.add_request(request("b", [2], priority=0))
        run(core)
        assert executor.steps[0].scheduled[0].request_id == first


def test_an_aborted_request_frees_its_pages_at_once_and_says_nothing() -> None:
    core, _ = make_core()
    core.add_request(request("a", [1] * 10, max_tokens=50))
    core.step()
    assert core.stats().kv_cache_usage > 0
    core.abort(["a", "unknown"])
    assert core.stats().kv_cache_usage == 0
    assert not core.has_work()
    core.check_integrity()


def test_a_stop_token_ends_a_request_and_is_named_but_eos_is_not() -> None:
    expected = generate([1, 2], 8)
    core, _ = make_core(eos_token_ids=(expected[3],))
    stop = expected[2]
    core.add_request(request("stop", [1, 2], max_tokens=8, stop_token_ids=[stop]))
    core.add_request(request("eos", [1, 2], max_tokens=8, ignore_eos=False))
    outputs = run(core)
    assert (outputs["stop"][-1].finish_reason, outputs["stop"][-1].stop_reason) == ("stop", stop)
    assert tokens(outputs["stop"]) == expected[:3]
    assert (outputs["eos"][-1].finish_reason, outputs["eos"][-1].stop_reason) == ("stop", None)
    assert tokens(outputs["eos"]) == expected[:4]


def test_requests_without_a_seed_get_different_ones_and_the_same_after_a_restart() -> None:
    seeds = []
    for _ in range(2):
        core, executor = make_core()
        core.add_request(request("a", [1]))
        core.add_request(request("b", [1]))
        core.add_request(request("c", [1], seed=42))
        run(core)
        seeds.append([n.seed for step in executor.steps for n in step.new])
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 3
    assert seeds[0][2] == 42


def test_the_core_imports_no_numeric_library() -> None:
    code = (
        "import quire_engine.core.loop, sys; "
        "bad = {'torch', 'numpy', 'transformers'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


ROTATION = RotationByLength("longrope", original=10)


def test_a_sequence_that_outgrows_its_rotation_begins_again_once() -> None:
    core, executor = make_core(rotation=ROTATION)
    core.add_request(request("grows", [1, 2, 3, 4, 5, 6], max_tokens=10))
    core.add_request(request("short", [9, 8, 7], max_tokens=5))
    outputs = run(core)
    assert tokens(outputs["grows"]) == generate([1, 2, 3, 4, 5, 6], 10)
    assert tokens(outputs["short"]) == generate([9, 8, 7], 5)
    starts = [(s.request_id, s.rotated_for) for step in executor.steps for s in step.new]
    assert starts == [("grows", 0), ("short", 0), ("grows", 11)]
    assert core.stats().num_preemptions == 0


def test_pages_are_shared_only_between_sequences_of_one_rotation() -> None:
    core, _ = make_core(rotation=ROTATION)
    for name, prompt in (("short", [1] * 9), ("long", [1] * 13), ("longer", [1] * 14), ("short again", [1] * 9)):
        core.add_request(request(name, prompt, max_tokens=1))
        run(core)
    assert core.stats().prefix_cache_hits == 12 + 8


def test_a_prompt_is_rotated_for_its_length_and_what_it_says_for_its_own() -> None:
    rotation = RotationByLength("dynamic", original=10)
    assert [rotation.length(*lengths) for lengths in ((10, 10), (10, 14), (12, 12), (12, 15))] == [0, 0, 12, 12]


def test_after_an_exception_within_a_step_nothing_is_taken_for_computed() -> None:
    class Failing(PagedExecutor):
        def execute(self, step: Step) -> StepResult:
            raise KeyboardInterrupt

    core = EngineCore(Failing(CONFIG), CONFIG)
    core.add_request(request("first", [1] * 12))
    with pytest.raises(KeyboardInterrupt):
        core.step()
    core.abort(["first"])
    with pytest.raises(RuntimeError, match="interrupted within a step: build a new LLM"):
        core.add_request(request("again", [1] * 12))
    with pytest.raises(RuntimeError, match="interrupted within a step"):
        core.step()


def test_steps_under_way_end_before_the_engine_does() -> None:
    config = replace(CONFIG, num_stages=2)
    executor = PagedExecutor(config)
    stages = Stages(executor, 2)
    core = EngineCore(stages, config)
    for name in ("a", "b"):
        core.add_request(request(name, [1] * 16))  # all that one step takes
    core.step()
    assert stages.num_in_flight == 1
    core.close()
    assert stages.num_in_flight == 0
