"""Where every layer has a sliding window, pages that have left it are free for others."""

from __future__ import annotations

import pytest

from tests.engine.core.fake_model import POISON, generate, search
from tests.engine.core.test_loop import make_core, request, run, tokens


@pytest.mark.parametrize("caching", [True, False], ids=["cache", "no cache"])
def test_a_request_that_grows_holds_no_more_than_its_window(caching: bool) -> None:
    core, _ = make_core(window=8, enable_prefix_caching=caching)
    core.add_request(request("r", [1] * 5, max_tokens=50))
    held, got = [], []
    while core.has_work():
        for output in core.step():
            got += output.new_token_ids
        core.check_integrity()
        held.append(core.stats().kv_cache_usage * 32)
    assert max(held) <= 8 // 4 + 2
    assert got == generate([1] * 5, 50, window=8)


def test_a_prompt_lets_pages_go_as_its_chunks_are_computed() -> None:
    core, _ = make_core(window=8, max_num_batched_tokens=8)
    core.add_request(request("r", [1] * 50, max_tokens=2))
    core.step()
    assert core.stats().kv_cache_usage * 32 == 13
    for _ in range(6):
        core.step()
    assert core.stats().kv_cache_usage * 32 <= 5
    run(core)


@pytest.mark.parametrize("num_swap_blocks", [0, 40], ids=["recompute", "swap"])
def test_requests_without_their_first_pages_come_back_as_they_were(num_swap_blocks: int) -> None:
    core, executor = make_core(window=8, num_blocks=16, num_swap_blocks=num_swap_blocks, enable_prefix_caching=False)
    for i in range(6):
        core.add_request(request(str(i), [i] * 6, max_tokens=30))
    outputs = run(core)
    assert core.stats().num_preemptions > 0
    assert [tokens(outputs[str(i)]) for i in range(6)] == [generate([i] * 6, 30, window=8) for i in range(6)]
    computed = sum(step.num_tokens for step in executor.steps)
    assert (computed == 6 * (6 + 29)) == (num_swap_blocks > 0)
    assert (core.stats().kv_cache_usage, core.stats().swap_usage) == (0.0, 0.0)


def test_of_a_sequence_whose_beginning_left_the_window_the_beginning_is_kept_longest() -> None:
    """Another takes a part of the pages: what is found again begins at the first one."""
    core, _ = make_core(window=8, num_blocks=16, max_num_batched_tokens=64)
    core.add_request(request("first", [1] * 40, max_tokens=9))
    run(core)
    core.add_request(request("other", [2] * 30, max_tokens=2))
    run(core)
    core.add_request(request("again", [1] * 40, max_tokens=4))
    outputs = run(core)["again"]
    assert outputs[0].num_cached_tokens >= 20
    assert tokens(outputs) == generate([1] * 40, 4, window=8)


def test_pages_that_were_let_go_are_found_again_by_those_who_begin_alike() -> None:
    core, _ = make_core(window=8)
    core.add_request(request("first", [1] * 20, max_tokens=4))
    run(core)
    core.add_request(request("again", [1] * 20, max_tokens=4))
    outputs = run(core)["again"]
    assert outputs[0].num_cached_tokens == 16
    assert tokens(outputs) == generate([1] * 20, 4, window=8)


def test_a_page_that_a_beam_leaves_is_cleared_where_nobody_looked_at_all_of_it() -> None:
    """It may hold NaN of the prompt, before the window, and is the next one's padding."""
    core, executor = make_core(window=1, num_blocks=4, max_num_seqs=2, enable_prefix_caching=False)
    executor.poison = True
    core.add_request(request("s", [0, POISON, 1], n=2, use_beam_search=True, max_tokens=3))
    (output,) = run(core)["s"]
    assert output.beams is not None
    assert [beam.token_ids for beam in output.beams] == search([0, POISON, 1], 2, 3, n=2, window=1)
