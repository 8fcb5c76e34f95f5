"""Requests, searches and aborts in any order, on any pool: the books agree after each, and every answer is right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quire_engine.core.core_config import CoreConfig
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineOutput, EngineRequest
from quire_engine.core.request import Request
from quire_engine.core.rotation import RotationByLength
from quire_engine.core.scheduler import Scheduler
from quire_engine.sampling_params import SamplingParams
from quire_engine.structured_outputs import StructuredOutputsParams
from tests.engine.core.fake_model import POISON, VOCAB_SIZE, PagedExecutor, generate, search
from tests.engine.core.test_adapters import AdaptingStages, Files
from tests.engine.core.test_beams import Rule, narrow
from tests.engine.core.test_grammars import Grammar

EOS = (11, 12, 40)
ADAPTERS = "abc"


@dataclass
class PendingRule:
    """What a search is held to, on its way."""

    rule: Rule
    ready: bool = False

    def done(self) -> bool:
        return self.ready

    def wait(self, seconds: float) -> None: ...

    def leave(self) -> None: ...

    def start(self) -> Rule:
        return self.rule


class Compiler:
    """Makes grammars that allow as many tokens as their regex has characters, and the rules of searches."""

    def __init__(self, made: list[Grammar | PendingRule]) -> None:
        self._made = made

    def compile(self, params: SamplingParams) -> Grammar | PendingRule:
        if params.use_beam_search:
            self._made.append(PendingRule(rule_of(params)))
        else:
            assert params.structured_outputs is not None
            self._made.append(Grammar(len(params.structured_outputs.regex or ""), ready=False))
        return self._made[-1]


def rule_of(params: SamplingParams) -> Rule:
    """Of a search: with a form beams grow fewer and more, and a stop string is that of a few tokens."""
    last = [token for token in range(VOCAB_SIZE) for stop in params.stop if token % 31 == int(stop)]
    return Rule(last=last) if params.structured_outputs is None else Rule(narrow, last)


class LookingAgain(Scheduler):
    """Has what it remembers of the first that waits agree with what it would find."""

    def _last_look(self, request: Request) -> Any:
        remembered, before = super()._last_look(request), self._look
        now = self._look_at(request)
        self._look = before
        assert remembered.least_lacking(self.pool) <= now.num_lacking
        assert remembered.num_tokens <= now.num_tokens
        return remembered


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(4, 20),
        num_swap_blocks=st.sampled_from([0, 4, 60]),
        block_size=st.sampled_from([1, 2, 4]),
        max_num_seqs=st.integers(1, 6),
        budget=st.integers(3, 30),
        chunks=st.booleans(),
        caches=st.booleans(),
        use_priority=st.booleans(),
        window=st.sampled_from([None, None, 1, 5, 9]),
        num_stages=st.sampled_from([0, 0, 1, 1, 2, 3]),
        rotation=st.sampled_from([None, None, RotationByLength("longrope", 9), RotationByLength("dynamic", 6)]),
        max_adapters=st.sampled_from([1, 1, 2]),
    )
    def start(
        self,
        num_blocks: int,
        num_swap_blocks: int,
        block_size: int,
        max_num_seqs: int,
        budget: int,
        chunks: bool,
        caches: bool,
        use_priority: bool,
        window: int | None,
        num_stages: int,
        rotation: RotationByLength | None,
        max_adapters: int,
    ) -> None:
        """With 0 stages there is one, which feeds back."""
        self.config = CoreConfig(
            num_blocks=num_blocks,
            num_swap_blocks=num_swap_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_model_len=40,
            enable_chunked_prefill=chunks,
            enable_prefix_caching=caches,
            use_priority=use_priority,
            window=window,
            num_stages=max(1, num_stages),
            runs_ahead=num_stages == 0,
            rotation=rotation,
            max_adapters=max_adapters,
            adapter_room=len(ADAPTERS),
            vocab_size=VOCAB_SIZE,
            eos_token_ids=EOS,
        )
        self.grammars: list[Grammar | PendingRule] = []  # in the order of their requests
        executor = AdaptingStages(PagedExecutor(self.config, poison=True), num_stages)
        self.core = EngineCore(executor, self.config, Compiler(self.grammars), adapter_files=Files())
        self.core._scheduler = LookingAgain(self.config)
        for adapter in ADAPTERS:
            self.core.load_adapter(adapter, adapter)
        self.requests: dict[str, EngineRequest] = {}
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, EngineOutput] = {}
        self.aborted: set[str] = set()

    @rule(
        begins_alike=st.integers(0, 12),
        tail=st.lists(st.sampled_from([*range(4)] * 4 + [POISON]), max_size=4),
        width=st.sampled_from([0, 0, 0, 1, 2, 3]),
        max_tokens=st.integers(1, 12),
        priority=st.integers(0, 2),
        salt=st.sampled_from([None, None, "salt"]),
        ignore_eos=st.booleans(),
        siblings=st.sampled_from([0, 0, 3]),
        length=st.sampled_from([None, None, 1, 4]),
        stop=st.sampled_from([None, "3", "20"]),
        adapter=st.sampled_from([None, None, *ADAPTERS]),
    )
    def add(
        self,
        begins_alike: int,
        tail: list[int],
        width: int,
        max_tokens: int,
        priority: int,
        salt: str | None,
        ignore_eos: bool,
        siblings: int,
        length: int | None,
        stop: str | None,
        adapter: str | None,
    ) -> None:
        """`length` is that of all that the request's grammar allows; a search has a form instead, and a stop string."""
        name = str(len(self.requests))
        params = SamplingParams(
            n=max(1, width),
            use_beam_search=width > 0,
            max_tokens=max_tokens,
            ignore_eos=ignore_eos,
            structured_outputs=None if length is None else StructuredOutputsParams(regex="x" * length),
            stop=[stop] if stop and width else [],
        )
        prompt = [1] * begins_alike + tail
        request = EngineRequest(name, prompt, params, priority=priority, cache_salt=salt, adapter=adapter)
        self.requests[name], self.tokens[name] = request, []
        self.core.add_request(request)
        for _ in range(siblings):
            name = str(len(self.requests))
            self.requests[name], self.tokens[name] = replace(request, request_id=name), []
            self.core.add_request(request.another(name, params))

    @rule()
    def compile(self) -> None:
        """All that are asked for by now are there."""
        for grammar in self.grammars:
            grammar.ready = True

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([*self.requests]))
        self.core.abort([name])
        if name not in self.ends:
            self.aborted.add(name)

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            if self.core.has_work():
                self.take(self.core.step())

    def take(self, outputs: list[EngineOutput]) -> None:
        for output in outputs:
            name = output.request_id
            assert name not in self.aborted | self.ends.keys(), "it had ended"
            self.tokens[name] += output.new_token_ids
            if output.finish_reason is not None:
                self.ends[name] = output

    @invariant()
    def the_books_agree(self) -> None:
        if hasattr(self, "core"):
            self.core.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        self.compile()
        for _ in range(3000):
            if not self.core.has_work():
                break
            self.take(self.core.step())
            self.core.check_integrity()
        assert not self.core.has_work(), "the requests do not end"
        stats = self.core.stats()
        assert (stats.kv_cache_usage, stats.swap_usage, stats.num_swapped) == (0.0, 0.0, 0)
        for name, request in self.requests.items():
            if name not in self.aborted and self.ends[name].error_kind == "fault":
                seen = request.prompt_token_ids + self.tokens[name]
                assert POISON in seen or request.params.use_beam_search, "a beam may have held it"
            elif name not in self.aborted and self.ends[name].finish_reason != "error":
                self.check_answer(request, self.ends[name])

    def check_answer(self, request: EngineRequest, end: EngineOutput) -> None:
        config, params, prompt = self.config, request.params, request.prompt_token_ids
        longest = config.max_beam_tokens(params) if params.use_beam_search else config.max_tokens
        count = min(params.max_tokens or longest, longest - len(prompt))
        if params.structured_outputs is not None and not params.use_beam_search:
            count = min(count, len(params.structured_outputs.regex or ""))
        eos = () if params.ignore_eos else EOS
        if params.use_beam_search:
            found = [beam.token_ids for beam in end.beams or []]
            rule = rule_of(params)
            assert found == search(
                prompt,
                params.n,
                count,
                eos,
                n=params.n,
                window=config.window or 0,
                allowed=rule.allowed_after,
                over=lambda output: output[-1] in rule.last,
            )
        else:
            if config.window is None:
                assert POISON not in prompt + self.tokens[request.request_id][:-1], "it went on behind NaN"
            assert self.tokens[request.request_id] == generate(prompt, count, eos, config.window or 0)


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
