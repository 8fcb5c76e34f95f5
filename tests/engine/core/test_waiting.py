"""A request that has to wait is looked at when it comes and when room may be there, not at every step."""

from __future__ import annotations

import pytest

from quire_engine.core.block_pool import BlockPool
from tests.engine.core.fake_model import generate
from tests.engine.core.test_loop import make_core, request, run

LONG = [5] * 160


@pytest.mark.parametrize("priority", [0, 1], ids=["all alike", "one that runs would give way"])
@pytest.mark.parametrize("cached", [0, 120], ids=["new", "cached in part"])
def test_the_first_that_waits_costs_the_same_at_each_step_however_long_it_is(
    cached: int, priority: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, _ = make_core(num_blocks=60, max_model_len=240, max_num_batched_tokens=240, use_priority=True)
    core.add_request(request("before", [*LONG[:cached], 7], max_tokens=1))
    run(core)
    core.add_request(request("runs", [8] * 100, max_tokens=25))
    core.add_request(request("too", [9] * 20, max_tokens=25, priority=priority))
    core.step()
    looked_up: list[int] = []
    match = BlockPool.match
    monkeypatch.setattr(BlockPool, "match", lambda pool, hashes: looked_up.append(len(hashes)) or match(pool, hashes))
    core.add_request(request("waits", LONG, max_tokens=3))
    answers: dict[str, list[int]] = {"waits": []}
    for step in range(40):
        for output in core.step() if core.has_work() else []:
            answers.setdefault(output.request_id, []).extend(output.new_token_ids)
        if step < 22:
            assert core.stats().num_waiting == 1
            assert sum(looked_up) <= 4 * len(LONG) // 4, f"it was matched again by step {step}"
    assert not core.has_work()
    assert answers["waits"] == generate(LONG, 3)


def test_one_that_waits_starts_as_soon_as_another_has_published_what_it_lacked() -> None:
    """It shares all of its prompt but the last page with one that computes it in chunks."""
    core, executor = make_core(num_blocks=14, max_num_batched_tokens=8)
    core.add_request(request("first", [5] * 40, max_tokens=8))
    core.step()
    core.add_request(request("same", [5] * 40, max_tokens=2))
    while not any(s.request_id == "same" for step in executor.steps for s in step.scheduled):
        core.step()
    assert any(s.request_id == "first" for s in executor.steps[-1].scheduled), "they do not run together"
