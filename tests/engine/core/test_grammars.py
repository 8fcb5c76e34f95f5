"""Requests that wait for their grammar, and those that follow it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from quire_engine.core.grammar import BusyError
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineOutput
from quire_engine.core.step import ScheduledSequence, Step
from quire_engine.sampling_params import SamplingParams
from quire_engine.structured_outputs import StructuredOutputsParams
from tests.engine.core.fake_model import VOCAB_SIZE, PagedExecutor, generate
from tests.engine.core.test_loop import CONFIG, request, run, tokens

FORM = StructuredOutputsParams(regex="fake")
ALL = b"\xff" * (-(-VOCAB_SIZE // 32) * 4)


@dataclass
class Grammar:
    """Takes any token, up to `length` of them, and is its own compilation."""

    length: int = 100
    ready: bool = True
    fault: Exception | None = None
    allowed: bytes = ALL
    taken: list[int] = field(default_factory=list)
    num_waits: int = 0
    left: bool = False

    def done(self) -> bool:
        return self.ready

    def wait(self, seconds: float) -> None:
        self.num_waits += 1

    def leave(self) -> None:
        self.left = True

    def start(self) -> Grammar:
        if self.fault is not None:
            raise self.fault
        return self

    def fork(self) -> Grammar:
        return replace(self, taken=list(self.taken))

    @property
    def finished(self) -> bool:
        return len(self.taken) == self.length

    def advance(self, token: int) -> None:
        self.taken.append(token)


@dataclass
class Shelf:
    """Hands out grammars in their order."""

    grammars: list[Grammar]

    def compile(self, params: SamplingParams) -> Grammar:
        assert params.structured_outputs == FORM
        return self.grammars.pop(0)


def make_core(*grammars: Grammar, **changes: object) -> tuple[EngineCore, PagedExecutor]:
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]  # mixed values
    executor = PagedExecutor(config)
    return EngineCore(executor, config, Shelf(list(grammars))), executor


def test_a_request_whose_grammar_is_not_there_holds_nobody_up() -> None:
    grammar = Grammar(ready=False)
    core, _ = make_core(grammar)
    core.add_request(request("waits", [1, 2], structured_outputs=FORM))
    core.add_request(request("free", [3, 4]))
    outputs: list[EngineOutput] = []
    while not any(o.finish_reason for o in outputs):
        assert core.stats().num_waiting >= 1
        outputs += core.step()
        core.check_integrity()
    assert {o.request_id for o in outputs} == {"free"}
    assert tokens(outputs) == generate([3, 4], 4)
    assert core.has_work()
    grammar.ready = True
    assert tokens(run(core)["waits"]) == generate([1, 2], 4)


def test_while_all_wait_for_grammars_a_step_waits_with_them_and_gives_nothing() -> None:
    grammar = Grammar(ready=False)
    core, executor = make_core(grammar)
    core.add_request(request("waits", [1, 2], structured_outputs=FORM))
    assert [core.step() for _ in range(3)] == [[], [], []]
    assert grammar.num_waits == 3
    assert executor.steps == []


def test_a_request_keeps_its_place_in_the_line_while_its_grammar_is_compiled() -> None:
    grammar = Grammar(ready=False)
    core, _ = make_core(grammar, max_num_seqs=1)
    core.add_request(request("first", [1], structured_outputs=FORM))
    for name in ("second", "third"):
        core.add_request(request(name, [2]))
    core.step()
    grammar.ready = True
    ended = [o.request_id for outputs in run(core).values() for o in outputs if o.finish_reason]
    assert ended == ["second", "first", "third"]


@pytest.mark.parametrize(
    ("fault", "message", "kind"),
    [
        (ValueError("structured_outputs.regex is wrong"), "structured_outputs.regex is wrong", "invalid"),
        (BusyError("try again"), "try again", "busy"),
        (OSError("disk"), "disk", "fault"),
    ],
)
def test_a_grammar_that_cannot_be_used_ends_its_request_alone(fault: Exception, message: str, kind: str) -> None:
    core, _ = make_core(Grammar(fault=fault))
    core.add_request(request("bad", [1], structured_outputs=FORM))
    core.add_request(request("good", [1, 2, 3]))
    outputs = run(core)
    assert [o.finish_reason for o in outputs["bad"]] == ["error"]
    assert message in (outputs["bad"][0].error or "")
    assert outputs["bad"][0].error_kind == kind
    assert tokens(outputs["good"]) == generate([1, 2, 3], 4)


def test_a_request_can_be_aborted_while_its_grammar_is_compiled() -> None:
    grammar = Grammar(ready=False)
    core, _ = make_core(grammar)
    core.add_request(request("gone", [1], structured_outputs=FORM))
    core.abort(["gone"])
    assert grammar.left
    assert not core.has_work()
    core.check_integrity()


def test_an_engine_without_grammars_refuses_a_form() -> None:
    core = EngineCore(PagedExecutor(CONFIG), CONFIG)
    core.add_request(request("form", [1], structured_outputs=FORM))
    assert "structured_outputs" in (run(core)["form"][0].error or "")


def test_a_grammar_meets_each_token_once_however_often_its_request_gives_way() -> None:
    grammars = [Grammar() for _ in range(6)]
    core, executor = make_core(*grammars, num_blocks=9)
    for i in range(6):
        core.add_request(request(str(i), [i] * 3, max_tokens=20, structured_outputs=FORM))
    outputs = run(core)
    assert core.stats().num_preemptions > 0
    for i, grammar in enumerate(grammars):
        assert grammar.taken == tokens(outputs[str(i)]) == generate([i] * 3, 20)
    assert all((s.allowed is not None) == s.samples for step in executor.steps for s in step.scheduled)
    assert all(new.params.structured_outputs is None for step in executor.steps for new in step.new)


def test_a_grammar_that_ends_ends_the_answer_whose_last_token_is_text() -> None:
    core, _ = make_core(Grammar(length=3), Grammar(length=4))
    for name in ("short", "as long as allowed"):
        core.add_request(request(name, [5], structured_outputs=FORM))
    outputs = run(core)
    for name, length in (("short", 3), ("as long as allowed", 4)):
        last = outputs[name][-1]
        assert (last.finish_reason, last.stop_reason, last.ended_by_token) == ("stop", None, False)
        assert tokens(outputs[name]) == generate([5], length)


def test_a_token_that_the_grammar_does_not_allow_is_an_error_and_no_end() -> None:
    first, second = generate([5], 2)
    for name, wrong in (("eos", first), ("text", second)):
        allowed = bytearray(ALL)
        allowed[wrong // 8] &= ~(1 << wrong % 8)
        core, _ = make_core(Grammar(allowed=bytes(allowed)), eos_token_ids=(first,))
        core.add_request(request(name, [5], ignore_eos=name == "text", structured_outputs=FORM))
        last = run(core)[name][-1]
        assert last.finish_reason == "error"
        assert "continues the answer" in (last.error or "")


def test_ranks_that_do_not_sample_are_sent_no_masks() -> None:
    masked = ScheduledSequence("masked", [1], 0, [], samples=True, allowed=b"1234")
    step = Step(removed=["r"], scheduled=[masked, ScheduledSequence("free", [1], 0, [], samples=True)])
    sent = step.without_masks()
    assert [s.allowed for s in sent.scheduled] == [None, None]
    assert (sent.removed, sent.num_tokens) == (step.removed, 2)
    assert masked.allowed == b"1234"
