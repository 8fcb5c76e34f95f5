"""Which requests run together where each has chosen an adapter, and what becomes of adapters that nobody uses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from quire_engine.core.adapters import StoredAdapter
from quire_engine.core.loop import EngineCore
from tests.engine.core.fake_model import PagedExecutor, Stages, generate
from tests.engine.core.test_loop import CONFIG, request, run


@dataclass
class Adapters(PagedExecutor):
    """An executor that remembers the numbers of the adapters that it holds."""

    held: list[int] = field(default_factory=list)
    prepared: list[int] = field(default_factory=list)
    is_full: bool = False

    def prepare_adapter(self, number: int, adapter: StoredAdapter) -> None:
        self.prepared.append(number)
        if self.is_full:
            raise RuntimeError("out of memory")

    def adopt_adapter(self, number: int) -> None:
        self.prepared.remove(number)
        self.held.append(number)

    def unload_adapter(self, number: int) -> None:
        for numbers in (self.held, self.prepared):
            if number in numbers:
                numbers.remove(number)


class AdaptingStages(Stages):
    """Takes any adapter, and answers with it as without."""

    def prepare_adapter(self, number: int, adapter: StoredAdapter) -> None: ...

    def adopt_adapter(self, number: int) -> None: ...

    def unload_adapter(self, number: int) -> None: ...


class Files:
    def read(self, path: str) -> StoredAdapter:
        if path == "broken":
            raise ValueError("broken")
        if path == "odd":
            raise KeyError("odd")
        return StoredAdapter(bytearray())


def make(names: Iterable[str], max_adapters: int = 1, **changes: Any) -> tuple[EngineCore, Adapters]:
    config = replace(CONFIG, max_adapters=max_adapters, adapter_room=4, **changes)
    executor = Adapters(config)
    core = EngineCore(executor, config, adapter_files=Files())
    for name in names:
        core.load_adapter(name, name)
    return core, executor


def add(core: EngineCore, name: str, adapter: str | None, **params: object) -> None:
    core.add_request(replace(request(name, [1, 2, 3], **params), adapter=adapter))  # type: ignore[arg-type]  # mixed values


def test_one_adapter_waits_for_another_and_requests_without_one_pass() -> None:
    core, _ = make("ab")
    for name, adapter in (("1", "a"), ("2", "b"), ("3", None), ("4", None)):
        add(core, name, adapter)
    core.step()
    stats = core.stats()
    assert (stats.num_running, stats.running_adapters, stats.waiting_adapters) == (3, ["a"], ["b"])
    assert set(run(core)) == {"1", "2", "3", "4"}
    assert core.stats().running_adapters == core.stats().waiting_adapters == []


def test_requests_of_a_busy_adapter_do_not_keep_another_waiting_for_ever() -> None:
    core, _ = make("ab")
    add(core, "first", "a")
    add(core, "other", "b")
    ended: list[str] = []
    for i in range(12):
        add(core, f"more {i}", "a")
        ended += [o.request_id for o in core.step() if o.finish_reason is not None]
        core.check_integrity()
    assert ended[:2] == ["first", "other"]
    assert len(run(core)) > 0


def test_a_place_goes_to_the_adapter_of_higher_priority() -> None:
    core, _ = make("abc", max_adapters=2, use_priority=True)
    for name, adapter, priority in (("1", "a", 2), ("2", "a", 3), ("3", "b", 1), ("4", "b", 9)):
        add(core, name, adapter, priority=priority)
    core.step()
    add(core, "5", "c", priority=1)
    core.step()
    stats = core.stats()
    assert (stats.running_adapters, stats.waiting_adapters, stats.num_preemptions) == (["b", "c"], ["a"], 2)
    outputs = run(core)
    assert list(outputs)[-2:] == ["1", "2"]
    assert outputs["1"][-1].finish_reason == outputs["2"][-1].finish_reason == "length"


@pytest.mark.parametrize("priority", [1, 2])
def test_a_place_stays_with_the_adapter_of_no_lower_priority(priority: int) -> None:
    core, _ = make("ab", use_priority=True)
    add(core, "high", "a", priority=1)
    add(core, "low", "a", priority=5)
    core.step()
    add(core, "waits", "b", priority=priority)
    core.step()
    assert (core.stats().running_adapters, core.stats().num_preemptions) == (["a"], 0)
    run(core)


def test_nobody_gives_a_place_to_one_that_cannot_start_all_the_same() -> None:
    """Its pages are held by requests of a higher priority."""
    core, _ = make("ab", use_priority=True, enable_prefix_caching=False)
    for name in ("high", "higher"):
        core.add_request(request(name, [*range(40)], max_tokens=24))
    add(core, "low", "a", priority=5, max_tokens=16)
    for _ in range(8):
        core.step()
    core.add_request(replace(request("first", [*range(45)], priority=1), adapter="b"))
    core.step()
    assert (core.stats().running_adapters, core.stats().num_preemptions) == (["a"], 0)
    run(core)


def test_nobody_gives_a_place_to_one_that_waits_behind_one_that_cannot_start() -> None:
    core, _ = make("ab", use_priority=True, enable_prefix_caching=False)
    for name in ("high", "higher"):
        core.add_request(request(name, [*range(40)], max_tokens=24))
    add(core, "low", "a", priority=5, max_tokens=16)
    for _ in range(8):
        core.step()
    core.add_request(request("ahead", [*range(45)]))
    add(core, "behind", "b", priority=1)
    core.step()
    assert (core.stats().running_adapters, core.stats().num_preemptions) == (["a"], 0)
    run(core)


def test_pages_of_one_that_gave_its_place_away_are_kept_though_nobody_can_run_yet() -> None:
    """Its neighbour is in the other stage's step, and holds the place until that has ended."""
    config = replace(CONFIG, num_stages=2, num_swap_blocks=20, use_priority=True, enable_prefix_caching=False)
    config = replace(config, max_adapters=1, adapter_room=2)
    core = EngineCore(AdaptingStages(PagedExecutor(config), 2), config, adapter_files=Files())
    for name in "ab":
        core.load_adapter(name, name)
    add(core, "1", "a", priority=1)
    add(core, "2", "a", priority=1)
    early = [token for _ in range(4) for o in core.step() if o.request_id == "1" for token in o.new_token_ids]
    add(core, "first", "b")
    outputs = run(core)
    assert core.stats().num_swaps > 0
    assert early + [token for o in outputs["1"] for token in o.new_token_ids] == generate([1, 2, 3], 4)


def test_an_adapter_leaves_with_its_last_request() -> None:
    core, executor = make("a")
    add(core, "runs", "a")
    core.step()
    core.unload_adapter("a")
    assert executor.held == [1]
    run(core)
    assert executor.held == []


def test_one_that_has_no_room_in_memory_leaves_all_as_it_was() -> None:
    core, executor = make("a")
    executor.is_full = True
    with pytest.raises(ValueError, match="'a' cannot be taken into memory: out of memory"):
        core.load_adapter("a", "a", replace_it=True)
    assert (executor.held, executor.prepared) == ([1], [])
    add(core, "runs", "a")
    assert len(run(core)) == 1


def test_an_aborted_request_lets_its_adapter_go() -> None:
    core, executor = make("a")
    add(core, "runs", "a")
    core.step()
    core.load_adapter("a", "a", replace_it=True)
    assert executor.held == [1, 2]
    core.abort(["runs"])
    assert executor.held == [2]


def test_one_that_is_broken_leaves_all_as_it_was() -> None:
    core, executor = make("a")
    for name, replace_it in (("b", False), ("a", True)):
        with pytest.raises(ValueError, match="broken"):
            core.load_adapter(name, "broken", replace_it=replace_it)
    assert executor.held == [1]
    add(core, "still", "a")
    assert set(run(core)) == {"still"}


def test_whatever_goes_wrong_is_told_and_leaves_all_as_it_was() -> None:
    core, executor = make("a")
    with pytest.raises(ValueError, match="the adapter 'b' could not be prepared: KeyError: 'odd'"):
        core.load_adapter("b", "odd")
    assert executor.held == [1]
    add(core, "still", "a")
    assert set(run(core)) == {"still"}


def test_adapters_that_requests_still_use_take_room() -> None:
    core, _ = make("abcd")
    add(core, "runs", "a")
    core.step()
    core.unload_adapter("a")
    with pytest.raises(
        ValueError, match="4 adapters are loaded, on their way, or still used by requests, and --max-cpu-loras is 4"
    ):
        core.load_adapter("e", "e")
    run(core)
    core.load_adapter("e", "e")


def test_steps_go_on_while_one_is_read_and_it_is_there_once_it_has_come() -> None:
    core, executor = make("a")
    load = core.begin_load("b", "b")
    add(core, "runs", "a")
    add(core, "early", "b")
    assert set(run(core)) == {"runs", "early"}
    load.prepare()
    assert (executor.held, executor.prepared) == ([1], [2])
    core.end_load(load)
    assert (executor.held, executor.prepared) == ([1, 2], [])
    add(core, "late", "b")
    assert set(run(core)) == {"late"}


def test_those_on_their_way_take_room() -> None:
    core, _ = make("abc")
    load = core.begin_load("d", "d")
    with pytest.raises(ValueError, match="4 adapters are loaded, on their way, or still used by requests"):
        core.begin_load("e", "e")
    load.prepare()
    core.end_load(load)


def test_one_that_was_replaced_while_requests_came_to_use_it_takes_room_too() -> None:
    core, executor = make("abcd")
    load = core.begin_load("a", "a", replace_it=True)
    load.prepare()
    add(core, "runs", "a")
    core.step()
    with pytest.raises(ValueError, match="4 adapters are loaded, on their way, or still used by requests"):
        core.end_load(load)
    assert (executor.held, executor.prepared) == ([1, 2, 3, 4], [])
    run(core)
    core.load_adapter("a", "a", replace_it=True)
    assert executor.held == [2, 3, 4, 6]


def test_a_request_of_one_that_is_unloaded_is_told_that_it_is_missing() -> None:
    core, _ = make("a")
    core.unload_adapter("a")
    late = replace(request("late", [1, 2, 3]), adapter="a")
    for one in (late, late.another("its sibling", late.params)):
        core.add_request(one)
    for (output,) in run(core).values():
        assert output.error == "the adapter 'a' is not loaded: load it, or leave it out"
        assert output.error_kind == "missing"
