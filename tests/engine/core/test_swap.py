"""Preempted requests keep in host memory what only they held, and go on where they were."""

from __future__ import annotations

from tests.engine.core.fake_model import PagedExecutor, generate
from tests.engine.core.test_loop import EngineCore, make_core, request, run, tokens


def pressed(**changes: object) -> tuple[EngineCore, PagedExecutor]:
    """Room for two of three requests of 10 + 12 tokens."""
    return make_core(**{"num_blocks": 8, "enable_prefix_caching": False, "num_swap_blocks": 32} | changes)


def step_until_swapped(core: EngineCore) -> None:
    while core.stats().num_swapped == 0:
        assert core.has_work(), "nobody was swapped out"
        core.step()


def test_a_swapped_request_goes_on_without_computing_anything_again() -> None:
    core, executor = pressed()
    for i in range(3):
        core.add_request(request(str(i), [i] * 10, max_tokens=12))
    outputs = run(core)
    assert core.stats().num_preemptions == core.stats().num_swaps > 0
    assert [tokens(outputs[str(i)]) for i in range(3)] == [generate([i] * 10, 12) for i in range(3)]
    assert sum(step.num_tokens for step in executor.steps) == 3 * (10 + 12 - 1)


def test_only_what_was_computed_is_copied_and_what_was_copied_is_read_back_once() -> None:
    core, executor = pressed()
    core.add_request(request("a", [1] * 10, max_tokens=12))
    core.add_request(request("b", [2] * 10, max_tokens=12))
    run(core)
    out = [pair for step in executor.steps for pair in step.swap_out]
    back = [pair for step in executor.steps for pair in step.swap_in]
    assert len(out) == len(back) == 4, "b had computed 16 tokens, 4 to a page"
    assert sorted(page for _, page in out) == sorted(page for page, _ in back)


def test_a_request_is_computed_anew_when_the_host_has_too_few_pages() -> None:
    core, executor = pressed(num_swap_blocks=3)
    core.add_request(request("a", [1] * 10, max_tokens=12))
    core.add_request(request("b", [2] * 10, max_tokens=12))
    outputs = run(core)
    assert (core.stats().num_preemptions, core.stats().num_swaps) == (1, 0)
    assert not any(step.swap_out or step.swap_in for step in executor.steps)
    assert tokens(outputs["b"]) == generate([2] * 10, 12)


def test_a_shared_page_is_not_copied_and_found_again_in_the_prefix_cache() -> None:
    core, executor = pressed(enable_prefix_caching=True)
    core.add_request(request("a", [1] * 9, max_tokens=15))
    core.add_request(request("b", [1] * 8 + [2], max_tokens=15))
    outputs = run(core)
    assert tokens(outputs["b"]) == generate([1] * 8 + [2], 15)
    out = [pair for step in executor.steps for pair in step.swap_out]
    assert len(out) == 3, "b had computed 20 tokens, 4 to a page, and 8 of them were a's too"
    assert sum(step.num_tokens for step in executor.steps) == 9 + 1 + 2 * 14


def test_a_request_whose_shared_pages_are_gone_is_computed_anew_and_gives_its_host_pages_back() -> None:
    core, executor = pressed(enable_prefix_caching=True, use_priority=True)
    core.add_request(request("a", [1] * 9, max_tokens=15))
    core.add_request(request("b", [1] * 8 + [2], max_tokens=15))
    step_until_swapped(core)
    core.abort(["a"])
    core.add_request(request("c", [3] * 28, priority=-1, max_tokens=1))
    done = len(executor.steps)
    run(core)
    # Only the first of the two shared pages was left.
    assert next(s.start for step in executor.steps[done:] for s in step.scheduled if s.request_id == "b") == 4
    assert not any(step.swap_in for step in executor.steps)
    assert core.stats().swap_usage == 0.0


def test_an_aborted_request_frees_its_host_pages_at_once() -> None:
    core, _ = pressed()
    core.add_request(request("a", [1] * 10, max_tokens=12))
    core.add_request(request("b", [2] * 10, max_tokens=12))
    step_until_swapped(core)
    assert core.stats().swap_usage == 4 / 32
    core.abort(["b"])
    assert (core.stats().num_swapped, core.stats().swap_usage) == (0, 0.0)
    core.check_integrity()


def test_a_swapped_request_takes_its_old_place_in_the_line() -> None:
    core, executor = pressed(num_blocks=8)
    for i in range(3):
        core.add_request(request(str(i), [i] * 10, max_tokens=12))
    run(core)
    met = [n.request_id for step in executor.steps for n in step.new]
    assert met.count("1") == 2
    assert met.index("2") > len(met) - met[::-1].index("1") - 1, "2 started before 1 was back"


def test_a_host_page_is_not_given_to_another_before_it_is_read() -> None:
    core, executor = pressed(num_blocks=12, num_swap_blocks=8)
    for i in range(12):
        core.add_request(request(str(i), [i] * (5 + i % 7), max_tokens=15))
    outputs = run(core)
    assert core.stats().num_swaps > 2
    for i in range(12):
        assert tokens(outputs[str(i)]) == generate([i] * (5 + i % 7), 15)
    for step in executor.steps:
        assert not {page for page, _ in step.swap_in} & {page for _, page in step.swap_out}
