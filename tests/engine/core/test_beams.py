"""Beam searches over pages: the answers of a search that looks at everything, shared pages, no leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import pytest

from quire_engine.core.block_pool import BlockPool
from quire_engine.core.messages import EngineRequest
from quire_engine.core.request import Request
from quire_engine.sampling_params import SamplingParams
from tests.engine.core.fake_model import VOCAB_SIZE, PagedExecutor, generate, search
from tests.engine.core.test_grammars import FORM
from tests.engine.core.test_loop import CONFIG, EngineCore, make_core, request, run, tokens


def beams(name: str, prompt: list[int], width: int, **params: object) -> EngineRequest:
    return request(name, prompt, **{"n": width, "use_beam_search": True, "max_tokens": 8} | params)


def answers(core: EngineCore) -> dict[str, list[list[int]]]:
    """The answers of every search, by request."""
    found = {}
    for name, outputs in run(core).items():
        (output,) = outputs
        assert output.beams is not None, output.error
        found[name] = [beam.token_ids for beam in output.beams]
    return found


@pytest.mark.parametrize("width", [1, 2, 3, 5])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("eos", [(), (11, 12), tuple(range(0, 97, 7))], ids=["no end", "two ends", "many ends"])
def test_a_search_finds_what_one_finds_that_looks_at_everything(
    width: int, length_penalty: float, eos: tuple[int, ...]
) -> None:
    core, _ = make_core(eos_token_ids=eos)
    for prompt in ([1], [2, 3, 4], [5] * 9):
        core.add_request(beams("s", prompt, width, length_penalty=length_penalty, ignore_eos=False, max_tokens=10))
        assert answers(core) == {"s": search(prompt, width, 10, eos, length_penalty, n=width)}
    assert core.stats().kv_cache_usage == 0.0


def test_the_prompt_is_computed_once_and_its_last_page_copied_for_all_but_one_beam() -> None:
    core, executor = make_core()
    core.add_request(beams("s", [1] * 10, 4, max_tokens=2))
    core.step()
    core.step()
    assert sum(step.num_tokens for step in executor.steps) == 10 + 4
    copies = [pair for step in executor.steps for pair in step.copies]
    assert len(copies) == 3
    assert len({source for source, _ in copies}) == 1


def test_beams_share_the_pages_that_they_agree_on() -> None:
    core, _ = make_core()
    core.add_request(beams("s", [1] * 16, 5))
    held = []
    while core.has_work():
        core.step()
        held.append(core.stats().kv_cache_usage * 32)
    assert held[0] == 4, "the prompt's"
    assert max(held) <= 4 + 5 * 2


def test_a_full_last_page_is_shared_without_a_copy() -> None:
    core, executor = make_core()
    core.add_request(beams("s", [1] * 8, 3, max_tokens=2))
    run(core)
    assert not any(step.copies for step in executor.steps)


@pytest.mark.parametrize("num_swap_blocks", [0, 64], ids=["recompute", "swap"])
@pytest.mark.parametrize("caching", [False, True], ids=["no cache", "cache"])
@pytest.mark.parametrize("budget", [4, 16])
def test_the_beams_of_a_search_give_way_and_come_back_together(
    num_swap_blocks: int, caching: bool, budget: int
) -> None:
    core, executor = make_core(
        num_blocks=14, num_swap_blocks=num_swap_blocks, enable_prefix_caching=caching, max_num_batched_tokens=budget
    )
    core.add_request(request("a", [9] * 24, max_tokens=28))
    core.add_request(beams("s", [1] * 7, 3, max_tokens=9))
    core.add_request(beams("t", [2] * 6, 2, max_tokens=9))
    outputs = run(core)
    assert core.stats().num_preemptions > 0
    assert (core.stats().num_swaps > 0) == (num_swap_blocks > 0)
    assert tokens(outputs["a"]) == generate([9] * 24, 28)
    for name, prompt, width in (("s", [1] * 7, 3), ("t", [2] * 6, 2)):
        found = outputs[name][0].beams
        assert found is not None
        assert [beam.token_ids for beam in found] == search(prompt, width, 9, n=width)
    assert (core.stats().kv_cache_usage, core.stats().swap_usage) == (0.0, 0.0)
    assert executor.tables.keys() <= {s.request_id for s in executor.steps[-1].scheduled}, "some were not forgotten"


def test_swapped_beams_go_on_without_computing_anything_again() -> None:
    core, executor = make_core(num_blocks=12, num_swap_blocks=64, enable_prefix_caching=False)
    core.add_request(request("a", [9] * 24, max_tokens=20))
    core.add_request(beams("s", [1] * 7, 3, max_tokens=9))
    run(core)
    assert core.stats().num_swaps > 0
    assert sum(step.num_tokens for step in executor.steps) == 24 + 19 + 7 + 3 * 8


def test_searches_take_the_places_of_all_their_beams_from_the_start() -> None:
    core, executor = make_core(max_num_seqs=4)
    for i in range(3):
        core.add_request(beams(str(i), [i] * 5, 3))
    found = answers(core)
    assert found == {str(i): search([i] * 5, 3, 8, n=3) for i in range(3)}
    assert max(len(step.scheduled) for step in executor.steps) == 3


def test_an_aborted_search_frees_the_pages_of_all_beams_at_once() -> None:
    core, _ = make_core()
    core.add_request(beams("s", [1] * 10, 4, max_tokens=20))
    for _ in range(5):
        core.step()
    core.abort(["s"])
    assert core.stats().kv_cache_usage == 0.0
    assert not core.has_work()
    core.check_integrity()


def test_the_best_of_more_beams_come_with_their_reasons_and_sums() -> None:
    core, _ = make_core()
    best = search([1, 2], 5, 8, n=5)
    stop = best[0][-1]
    core.add_request(beams("s", [1, 2], 2, best_of=5, stop_token_ids=[stop]))
    (output,) = run(core)["s"]
    assert output.beams is not None
    assert [beam.token_ids for beam in output.beams] == search([1, 2], 5, 8, (stop,), n=2)
    for beam in output.beams:
        ended = beam.token_ids[-1] == stop
        assert (beam.finish_reason, beam.stop_reason) == (("stop", stop) if ended else ("length", None))
        assert beam.cumulative_logprob < 0


def test_a_search_ends_where_all_of_its_beams_fill_the_pool() -> None:
    core, _ = make_core(num_blocks=6)
    core.add_request(beams("s", [1] * 5, 2, max_tokens=None))
    assert answers(core) == {"s": search([1] * 5, 2, 7, n=2)}


@pytest.mark.parametrize("caching", [False, True], ids=["no cache", "cache"])
def test_what_a_round_copies_does_not_grow_with_the_answers(monkeypatch: pytest.MonkeyPatch, caching: bool) -> None:
    """Tokens, references to blocks and places in the executor's tables: of twice the rounds, twice as many."""
    moved = Counter[str]()
    follow, acquire = Request.follow, BlockPool.acquire

    def counted_follow(child: Request, parent: Request, num_kept: int, block_size: int) -> None:
        moved["tokens"] += len(parent.token_ids) - max(0, num_kept - 1) * block_size
        follow(child, parent, num_kept, block_size)

    def counted_acquire(pool: BlockPool, blocks: list[int]) -> None:
        moved["blocks"] += len(blocks)
        acquire(pool, blocks)

    monkeypatch.setattr(Request, "follow", counted_follow)
    monkeypatch.setattr(BlockPool, "acquire", counted_acquire)
    counts = []
    for length in (200, 400):
        moved.clear()
        core, executor = make_core(num_blocks=600, max_model_len=500, enable_prefix_caching=caching)
        core.add_request(beams("s", [1] * 4, 4, max_tokens=length))
        assert [len(found) for found in answers(core)["s"]] == [length] * 4
        moved["places"] = sum(len(s.new_block_ids) for step in executor.steps for s in step.scheduled)
        counts.append(dict(moved))
    assert all(counts[1][what] < 2.5 * counts[0][what] for what in counts[0]), counts


def test_beams_that_part_early_and_meet_again_hold_what_they_should() -> None:
    parent, child = (Request(name, [1, 2, 3, 4, 5, 6, 7], 2, SamplingParams(), 0, (0, 0)) for name in "pc")
    parent.block_ids, child.block_ids = [0, 1, 2, 3], [0, 4, 5, 3]
    parent.block_hashes, child.block_hashes = [b"0", b"1", b"2"], [b"0", b"1", b"2"]
    child.token_ids[6] = 9
    child.follow(parent, 3, 2)
    assert (child.token_ids, child.block_ids) == (parent.token_ids, [0, 4, 5, 3])
    child.token_ids = [1, 2, 9, 9, 9, 9, 9]
    child.follow(parent, 1, 2)
    assert (child.token_ids, child.block_ids) == (parent.token_ids, parent.block_ids)


@pytest.mark.parametrize(
    ("changes", "width", "prompt", "message"),
    [
        ({"max_num_seqs": 3}, 4, [1], "best_of is 4 and at most 3 sequences run at once"),
        ({"num_blocks": 8}, 4, [1] * 8, "the KV cache holds 4 beams of 8: lower best_of"),
        ({"max_num_seqs": 99, "max_num_batched_tokens": 99, "num_blocks": 500}, 98, [1], "at most 97 together"),
    ],
)
def test_a_search_that_can_never_run_is_refused(
    changes: dict[str, object], width: int, prompt: list[int], message: str
) -> None:
    core, _ = make_core(**changes)
    core.add_request(beams("s", prompt, width))
    (output,) = run(core)["s"]
    assert message in (output.error or "")


@dataclass
class Rule:
    """Lets tokens come by what came before, and ends the answer where one of `last` comes."""

    allowed_after: Callable[[list[int]], Collection[int]] = lambda output: range(VOCAB_SIZE)
    last: Collection[int] = ()
    never: Collection[int] = ()  # allowed, and refused when they come
    output: list[int] = field(default_factory=list)

    @property
    def allowed(self) -> bytes:
        mask = bytearray(-(-VOCAB_SIZE // 32) * 4)
        for token in self.allowed_after(self.output):
            mask[token // 8] |= 1 << token % 8
        return bytes(mask)

    @property
    def finished(self) -> bool:
        return self.output[-1:] != [] and self.output[-1] in self.last

    def advance(self, token: int) -> None:
        assert token in self.allowed_after(self.output)
        if token in self.never:
            raise ValueError("it cannot go on")
        self.output.append(token)

    def fork(self) -> Rule:
        return replace(self, output=list(self.output))


@dataclass
class Ready:
    """A grammar that is there at once."""

    rule: Rule

    def compile(self, _: object) -> Ready:
        return self

    def done(self) -> bool:
        return True

    def wait(self, seconds: float) -> None:
        raise AssertionError

    def leave(self) -> None:
        raise AssertionError

    def start(self) -> Rule:
        return self.rule


def constrained(rule: Rule, **changes: object) -> EngineCore:
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]  # mixed values
    return EngineCore(PagedExecutor(config), config, Ready(rule))


def narrow(output: list[int]) -> Collection[int]:
    """One token, then three, then one, and so on: beams grow fewer and more."""
    return range(5, 97) if len(output) % 4 == 0 else [len(output) % 7] if len(output) % 2 else range(20, 23)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("ends", [(), tuple(range(0, 97, 9))], ids=["cut", "end by themselves"])
@pytest.mark.parametrize("changes", [{}, {"num_blocks": 16, "num_swap_blocks": 40}], ids=["room", "pressure"])
def test_beams_follow_a_grammar_as_a_search_does_that_looks_at_everything(
    width: int, ends: tuple[int, ...], changes: dict[str, int]
) -> None:
    core = constrained(Rule(narrow, ends), **changes)
    core.add_request(request("a", [9] * 24, max_tokens=20))
    core.add_request(beams("s", [1] * 6, width, structured_outputs=FORM))
    outputs = run(core)
    (output,) = outputs["s"]
    assert output.beams is not None, output.error
    wanted = search([1] * 6, width, 8, n=width, allowed=narrow, over=lambda output: output[-1] in ends)
    assert [beam.token_ids for beam in output.beams] == wanted
    for beam in output.beams:
        ended = beam.token_ids[-1] in ends
        assert (beam.finish_reason, beam.ended_by_text) == (("stop", True) if ended else ("length", False))
        assert not beam.ended_by_token
    assert tokens(outputs["a"]) == generate([9] * 24, 20)
    assert core.stats().num_preemptions > 0 or width < 4 or not changes
    assert (core.stats().kv_cache_usage, core.stats().swap_usage) == (0.0, 0.0)


def test_end_tokens_and_ends_of_the_grammar_end_beams_alike() -> None:
    core = constrained(Rule(last=range(0, 97, 9)), eos_token_ids=(4, 14, 24))
    core.add_request(beams("s", [1, 2], 3, structured_outputs=FORM, ignore_eos=False))
    wanted = search([1, 2], 3, 8, (4, 14, 24), n=3, over=lambda output: output[-1] % 9 == 0)
    assert answers(core) == {"s": wanted}


def test_a_beam_whose_grammar_gives_up_leaves_its_place_to_others() -> None:
    never = range(0, 97, 2)
    core = constrained(Rule(never=never))
    core.add_request(beams("s", [1, 2], 3, structured_outputs=FORM, max_tokens=3))
    (found,) = answers(core).values()
    assert len(found) == 3
    assert not any(token in never for output in found for token in output)


def test_a_search_none_of_whose_beams_can_go_on_says_why() -> None:
    core = constrained(Rule(never=range(97)))
    core.add_request(beams("s", [1, 2], 3, structured_outputs=FORM))
    (output,) = run(core)["s"]
    assert (output.finish_reason, output.error) == ("error", "it cannot go on")
    assert core.stats().kv_cache_usage == 0.0


def test_beams_of_which_none_may_come_are_an_error() -> None:
    core = constrained(Rule(lambda output: [5] if not output else []))
    core.add_request(beams("s", [1, 2], 2, structured_outputs=FORM))
    assert run(core)["s"][0].finish_reason == "error"


@dataclass
class Costly:
    """Lets everything come, and takes a second of the clock for each token."""

    clock: list[float]

    allowed = None
    finished = False

    def advance(self, token: int) -> None:
        self.clock[0] += 1

    def fork(self) -> Costly:
        return self


def test_a_search_s_grammars_have_one_limit_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("quire_engine.core.beam_group.time.thread_time", lambda: clock[0])
    core = constrained(Costly(clock))  # type: ignore[arg-type]  # another state
    core.add_request(beams("s", [1, 2], 3, structured_outputs=FORM))
    (output,) = run(core)["s"]
    assert (output.finish_reason, "takes too long to follow" in (output.error or "")) == ("error", True)
    assert clock[0] < 3
    assert core.stats().kv_cache_usage == 0.0
    assert not core.has_work()
    core.check_integrity()


def test_no_more_is_asked_of_a_grammar_than_what_matters() -> None:
    """Where nearly every token ends the answer, and the best that go on are worse than all answers there are."""
    asked: list[int] = []

    class Counting(Rule):
        def advance(self, token: int) -> None:
            asked.append(token)
            super().advance(token)

    core = constrained(Counting(last=range(97)))
    core.add_request(beams("s", [1, 2], 3, structured_outputs=FORM, early_stopping=True))
    (output,) = run(core)["s"]
    assert output.beams is not None
    assert len(output.beams) == len(asked) == 3
