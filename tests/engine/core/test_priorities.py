"""Under the priority policy, who matters less gives way to who matters more, once and not again."""

from __future__ import annotations

import pytest

from tests.engine.core.fake_model import PagedExecutor, generate
from tests.engine.core.test_loop import EngineCore, make_core, request, run, tokens


def prioritized(**changes: object) -> tuple[EngineCore, PagedExecutor]:
    return make_core(**{"use_priority": True, "enable_prefix_caching": False} | changes)


@pytest.mark.parametrize("num_swap_blocks", [0, 32], ids=["recompute", "swap"])
def test_a_request_of_higher_priority_gets_the_pages_of_lower_ones(num_swap_blocks: int) -> None:
    core, executor = prioritized(num_blocks=12, num_swap_blocks=num_swap_blocks)
    for i in range(3):
        core.add_request(request(f"low{i}", [i] * 11, priority=5, max_tokens=4))
    core.step()
    core.step()
    core.add_request(request("high", [7] * 23, priority=0, max_tokens=3))
    core.step()
    assert "high" in {s.request_id for s in executor.steps[-1].scheduled}
    assert core._scheduler.preempted == ["low2", "low1"]
    outputs = run(core)
    assert core.stats().num_preemptions == 2, "nobody is preempted again"
    assert tokens(outputs["high"]) == generate([7] * 23, 3)


def test_a_request_of_higher_priority_gets_the_place_of_the_newest_lower_one() -> None:
    core, executor = prioritized(max_num_seqs=2)
    core.add_request(request("low0", [1] * 3, priority=5, max_tokens=9))
    core.add_request(request("low1", [2] * 3, priority=5, max_tokens=9))
    core.step()
    core.add_request(request("high", [7] * 3, priority=0, max_tokens=3))
    core.step()
    assert core._scheduler.preempted == ["low1"]
    assert {s.request_id for s in executor.steps[-1].scheduled} == {"low0", "high"}
    run(core)
    assert core.stats().num_preemptions == 1


def test_nobody_gives_way_when_that_would_not_make_room() -> None:
    core, _ = prioritized(num_blocks=12)
    core.add_request(request("important", [1] * 30, priority=0, max_tokens=9))
    core.add_request(request("low", [2] * 5, priority=5, max_tokens=9))
    core.step()
    core.step()
    core.add_request(request("middle", [3] * 20, priority=1, max_tokens=3))
    core.step()
    assert core._scheduler.preempted == []
    run(core)


def test_equals_and_their_betters_do_not_give_way() -> None:
    core, _ = prioritized(max_num_seqs=1)
    core.add_request(request("a", [1] * 3, priority=1, max_tokens=6))
    core.step()
    for priority in (1, 2):
        core.add_request(request(str(priority), [2] * 3, priority=priority))
    outputs = run(core)
    assert core.stats().num_preemptions == 0
    assert list(outputs) == ["a", "1", "2"]


def test_a_long_prompt_of_low_priority_does_not_hold_up_a_short_one_of_higher_priority() -> None:
    core, executor = prioritized(max_num_batched_tokens=4)
    core.add_request(request("low", [1] * 40, priority=5, max_tokens=1))
    core.step()
    core.add_request(request("high", [2] * 4, priority=0, max_tokens=2))
    core.step()
    assert [s.request_id for s in executor.steps[-1].scheduled] == ["high"]
    assert core.stats().num_preemptions == 0
    run(core)


def test_a_request_that_shares_pages_with_lower_ones_makes_them_give_way_only_for_what_it_lacks() -> None:
    core, _ = prioritized(num_blocks=8, enable_prefix_caching=True)
    core.add_request(request("low0", [1] * 12, priority=5, max_tokens=4))
    core.add_request(request("low1", [2] * 12, priority=5, max_tokens=4))
    core.step()
    core.step()
    core.add_request(request("high", [1] * 12 + [3] * 3, priority=0, max_tokens=2))
    core.step()
    assert core._scheduler.preempted == ["low1"]
    outputs = run(core)
    assert tokens(outputs["high"]) == generate([1] * 12 + [3] * 3, 2)[1:]
