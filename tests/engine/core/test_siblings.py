"""Several answers to one prompt: it is computed once, and its last page is copied when they go apart."""

from __future__ import annotations

import pytest

from quire_engine import wire
from quire_engine.core.block_hash import block_hash
from quire_engine.core.messages import EngineRequest
from tests.engine.core.fake_model import PagedExecutor, generate, search
from tests.engine.core.test_grammars import FORM, Grammar, Shelf
from tests.engine.core.test_loop import CONFIG, EngineCore, make_core, request, run, tokens


def siblings(count: int, prompt: list[int], **params: object) -> list[EngineRequest]:
    first = request("0", prompt, **params)
    return [first, *(first.another(str(i), first.params) for i in range(1, count))]


@pytest.mark.parametrize("caching", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("length", [9, 12, 40], ids=["partial page", "full pages", "chunks"])
def test_the_prompt_is_computed_once_for_all(caching: bool, length: int) -> None:
    core, executor = make_core(enable_prefix_caching=caching)
    for one in siblings(4, [5] * length):
        core.add_request(one)
    while not begin(core):
        pass
    held = core.stats().kv_cache_usage * 32
    outputs = run(core)
    assert sum(step.num_tokens for step in executor.steps) == length + 4 * 3
    assert held <= -(-length // 4), "each had pages of its own"
    assert sum(len(step.copies) for step in executor.steps) == (3 if length % 4 else 0)
    assert all(tokens(outputs[str(i)]) == generate([5] * length, 4)[1:] for i in range(4))


def begin(core: EngineCore) -> bool:
    """Whether all four have their first token after one more step."""
    assert core.has_work()
    return len([o for o in core.step() if o.new_token_ids]) == 4


def test_one_that_finds_no_place_beside_the_first_starts_later_on_its_own() -> None:
    core, executor = make_core(max_num_seqs=2)
    for one in siblings(3, [5] * 9):
        core.add_request(one)
    outputs = run(core)
    assert [tokens(outputs[str(i)]) for i in range(3)] == [generate([5] * 9, 4)] * 3
    assert max(len(step.scheduled) for step in executor.steps) == 2


@pytest.mark.parametrize("num_swap_blocks", [0, 40], ids=["recompute", "swap"])
def test_siblings_give_way_one_by_one(num_swap_blocks: int) -> None:
    core, _ = make_core(num_blocks=8, num_swap_blocks=num_swap_blocks)
    for one in siblings(4, [5] * 10, max_tokens=10):
        core.add_request(one)
    outputs = run(core)
    assert core.stats().num_preemptions > 0
    assert [tokens(outputs[str(i)]) for i in range(4)] == [generate([5] * 10, 10)] * 4
    assert (core.stats().kv_cache_usage, core.stats().swap_usage) == (0.0, 0.0)


def test_the_first_may_be_aborted_at_any_time() -> None:
    for steps in range(5):
        core, _ = make_core()
        for one in siblings(3, [5] * 40):
            core.add_request(one)
        got: dict[str, list[int]] = {"1": [], "2": []}
        for turn in range(40):
            if turn == steps:
                core.abort(["0"])
            for output in core.step() if core.has_work() else []:
                if output.request_id != "0":
                    got[output.request_id] += output.new_token_ids
            core.check_integrity()
        assert list(got.values()) == [generate([5] * 40, 4)] * 2


@pytest.mark.parametrize("change", [{"prompt_token_ids": [5] * 9}, {"cache_salt": "x"}, {"sibling_id": "unknown"}])
def test_a_sibling_has_a_sibling_and_nothing_of_its_own(change: dict[str, object]) -> None:
    core, _ = make_core()
    first, second = siblings(2, [5] * 9)
    for name, value in change.items():
        setattr(second, name, value)
    core.add_request(first)
    core.add_request(second)
    outputs = run(core)
    assert tokens(outputs["0"]) == generate([5] * 9, 4)
    assert (outputs["1"][0].error or "").startswith("sibling_id is ")


def test_siblings_of_one_that_is_refused_are_refused_for_the_same_reason() -> None:
    core, _ = make_core()
    for one in siblings(3, [5] * 999):
        core.add_request(one)
    errors = {output.error for (output,) in run(core).values()}
    assert len(errors) == 1
    assert "--max-model-len" in str(errors)


@pytest.mark.parametrize("first", [{"use_beam_search": True}, {"prompt_logprobs": 0}])
def test_one_may_be_the_sibling_of_a_request_of_another_kind(first: dict[str, object]) -> None:
    core, _ = make_core(max_num_batched_tokens=64)
    eldest = request("0", [5] * 9, **first)
    core.add_request(eldest)
    for name, params in (("plain", {}), ("beams", {"use_beam_search": True, "n": 2}), ("prompt", first)):
        core.add_request(eldest.another(name, request(name, [], **params).params))
    outputs = run(core)
    assert tokens(outputs["plain"]) == generate([5] * 9, 4)
    assert [b.token_ids for b in outputs["beams"][0].beams or ()] == search([5] * 9, 2, 4, n=2)


def test_a_sibling_crosses_the_socket_without_the_prompt() -> None:
    def size(count: int, length: int) -> int:
        return len(wire.encode(wire.Add(siblings(count, [5] * length))))

    assert size(9, 10_000) - size(9, 1) == size(1, 10_000) - size(1, 1)
    (_, second) = siblings(2, [5])
    sent = wire.decode_to_engine(wire.encode(wire.Add([second])))
    assert isinstance(sent, wire.Add)
    assert sent.requests == [second]


def test_no_more_begin_at_once_than_have_a_page_to_write_to() -> None:
    core, executor = make_core(num_blocks=7)
    for one in siblings(6, [5] * 8, max_tokens=2):
        core.add_request(one)
    core.step()
    # Of the 7 pages the prompt holds 2, and 1 is kept back.
    assert len(executor.steps[0].scheduled) == 1 + 4
    outputs = run(core)
    assert core.stats().num_preemptions == 0
    assert len(outputs) == 6


@pytest.mark.parametrize("grammars", [False, True], ids=["at once", "when their grammars are there"])
def test_the_prompts_pages_are_named_once_for_all(monkeypatch: pytest.MonkeyPatch, grammars: bool) -> None:
    named = []
    monkeypatch.setattr("quire_engine.core.request.block_hash", lambda *a: named.append(a) or block_hash(*a))
    core, _ = make_core()
    params: dict[str, object] = {}
    if grammars:
        core = EngineCore(PagedExecutor(CONFIG), CONFIG, Shelf([Grammar() for _ in range(4)]))
        params["structured_outputs"] = FORM
    for one in siblings(4, [5] * 10, max_tokens=2, **params):
        core.add_request(one)
    outputs = run(core)
    assert len(named) == 2
    assert [tokens(o) for o in outputs.values()] == [generate([5] * 10, 2)] * 4
