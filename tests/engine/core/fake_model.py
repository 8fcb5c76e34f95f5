"""A model of plain ints, and an executor that runs it from its own copy of what the steps said."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from quire_engine.core.core_config import CoreConfig
from quire_engine.core.step import LATEST, NO_TOKEN, ScheduledSequence, Step, StepResult, TokenLogprobs

VOCAB_SIZE = 97
POISON = 96  # a token whose keys and values are NaN, where an executor takes it for that


def next_token(token_ids: list[int]) -> int:
    """The model: the next token depends on every token before it, or on those in its window."""
    value = 7
    for token in token_ids:
        value = (value * 31 + token + 1) % 1_000_003
    return value % VOCAB_SIZE


def generate(prompt: list[int], count: int, eos: tuple[int, ...] = (), window: int = 0) -> list[int]:
    """`count` tokens after `prompt`, or up to the first of `eos`."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        tokens.append(next_token(tokens[-window:]))
        if tokens[-1] in eos:
            break
    return tokens[len(prompt) :]


def log_probabilities(token_ids: list[int]) -> list[float]:
    """The logarithm of each token's probability to come next, for beam searches. No two are equal."""
    value = 7
    for token in token_ids:
        value = (value * 31 + token + 1) % 1_000_003
    weights = [(value * (token + 11) ** 3) % 1009 + token / VOCAB_SIZE + 1 for token in range(VOCAB_SIZE)]
    total = sum(weights)
    return [math.log(weight / total) for weight in weights]


def search(
    prompt: list[int],
    width: int,
    count: int,
    eos: tuple[int, ...] = (),
    length_penalty: float = 1.0,
    n: int = 1,
    window: int = 0,
    allowed: Callable[[list[int]], Collection[int]] = lambda output: range(VOCAB_SIZE),
    over: Callable[[list[int]], bool] = lambda output: False,
) -> list[list[int]]:
    """The `n` best answers of a beam search that looks at every continuation of every beam.

    `allowed` are the tokens that may follow an output, and `over` says whether an output is whole as it is.
    """
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    found: list[tuple[float, list[int]]] = []
    for length in range(1, count + 1):
        every = sorted(
            (
                (score + logprob, [*output, token])
                for score, output in running
                for token, logprob in enumerate(log_probabilities((prompt + output)[-window:]))
                if token in allowed(output)
            ),
            reverse=True,
        )
        ends = {id(o) for _, o in every if o[-1] in eos or over(o)}
        whole = [(s / length**length_penalty, o) for s, o in every[:width] if id(o) in ends or length == count]
        found = sorted(found + whole, reverse=True)[:width]
        running = [(s, o) for s, o in every if id(o) not in ends][:width]
        if not running:
            break
        if len(found) == width and running[0][0] / length**length_penalty <= found[-1][0]:
            break
    return [output for _, output in found[:n]]


class Stages:
    """An executor as a pipeline: the results come when they are asked for, in order."""

    def __init__(self, executor: PagedExecutor, depth: int) -> None:
        self.depth = 2 if executor.config.runs_ahead else depth
        self.most_in_flight = 0
        self._executor = executor
        self._submitted: deque[Step] = deque()

    def submit(self, step: Step) -> None:
        in_flight = {s.request_id for other in self._submitted for s in other.scheduled}
        both = in_flight & {s.request_id for s in step.scheduled}
        assert not both or self._executor.config.runs_ahead, "a request is in two steps at once"
        for s in step.scheduled:
            assert LATEST not in s.token_ids or (s.request_id in in_flight and len(s.token_ids) == 1)
        self._submitted.append(step)
        self.most_in_flight = max(self.most_in_flight, len(self._submitted))
        assert len(self._submitted) <= self.depth

    @property
    def num_in_flight(self) -> int:
        return len(self._submitted)

    def collect(self) -> StepResult:
        return self._executor.execute(self._submitted.popleft())


@dataclass
class PagedExecutor:
    """Keeps the tokens in pages, as a real model keeps keys and values, and reads them back through block tables.

    A page that is handed out too early, shared wrongly or freed twice shows as a wrong token.
    """

    config: CoreConfig
    tables: dict[str, list[int]] = field(default_factory=dict)
    num_logprobs: dict[str, int] = field(default_factory=dict)  # of the requests that ask for any
    rank_allowed: set[str] = field(default_factory=set)  # of these, those that want them of what is allowed
    latest: dict[str, int] = field(default_factory=dict)  # what each request last sampled
    pages: list[list[int | None]] = field(default_factory=list)
    host_pages: list[list[int | None]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    poison: bool = False

    def __post_init__(self) -> None:
        config = self.config
        self.pages = [[None] * config.block_size for _ in range(config.num_blocks)]
        self.host_pages = [[None] * config.block_size for _ in range(config.num_swap_blocks)]

    def execute(self, step: Step) -> StepResult:
        config = self.config
        self.steps.append(step)
        assert step.num_tokens <= config.max_num_batched_tokens
        assert len({s.request_id for s in step.scheduled}) == len(step.scheduled)
        for request_id in step.removed:
            del self.tables[request_id]
            self.num_logprobs.pop(request_id, None)
            self.latest.pop(request_id, None)
            self.rank_allowed.discard(request_id)
        for new in step.new:
            assert new.request_id not in self.tables
            self.tables[new.request_id] = []
            if new.params.logprobs is not None:
                self.num_logprobs[new.request_id] = new.params.logprobs
            if new.ranks_allowed:
                self.rank_allowed.add(new.request_id)
        assert len(self.tables) <= config.max_num_seqs
        for block, page in step.swap_out:
            self.host_pages[page] = list(self.pages[block])
        for block in step.cleared:
            self.pages[block] = [None] * config.block_size
        for page, block in step.swap_in:
            self.pages[block] = list(self.host_pages[page])
        for source, copy in step.copies:
            self.pages[copy] = list(self.pages[source])
        for s in step.scheduled:
            if s.samples_after is None:
                assert s.token_ids
            else:
                sibling = next(other for other in step.scheduled if other.request_id == s.samples_after)
                assert sibling.samples
                assert (s.start, s.token_ids) == (sibling.end, [])
            table = self.tables[s.request_id]
            assert s.first_new_block <= len(table)
            table[s.first_new_block : s.first_new_block + len(s.new_block_ids)] = s.new_block_ids
            for position, token in enumerate(s.token_ids, s.start):
                page, offset = self._slot(s.request_id, position)
                page[offset] = self.latest[s.request_id] if token == LATEST else token
        tokens = [[self._sample(s)] if s.samples else [] for s in step.scheduled]
        self.latest |= {s.request_id: own[0] for s, own in zip(step.scheduled, tokens, strict=True) if own}
        logprobs = {
            s.request_id: [self._rank(s)] for s in step.scheduled if s.samples and s.request_id in self.num_logprobs
        }
        return StepResult(tokens, logprobs)

    def _sample(self, s: ScheduledSequence) -> int:
        tokens = self._read(s.request_id, s.end)
        if self.poison and POISON in tokens:
            return NO_TOKEN
        page, offset = self._slot(s.request_id, s.end - 1)
        assert not self.poison or POISON not in page[offset + 1 :], f"{s.request_id} has another's NaN in its padding"
        return next_token(tokens)

    def _rank(self, s: ScheduledSequence) -> TokenLogprobs:
        logprobs = log_probabilities(self._read(s.request_id, s.end))
        if s.allowed is not None and s.request_id in self.rank_allowed:
            may_come = [s.allowed[token // 8] >> token % 8 & 1 for token in range(VOCAB_SIZE)]
            logprobs = [logprob if may else -math.inf for logprob, may in zip(logprobs, may_come, strict=True)]
        best = sorted(range(VOCAB_SIZE), key=lambda token: -logprobs[token])[: self.num_logprobs[s.request_id]]
        return TokenLogprobs(best[0], logprobs[best[0]], 1, best, [logprobs[token] for token in best])

    def _slot(self, request_id: str, position: int) -> tuple[list[int | None], int]:
        block_size = self.config.block_size
        return self.pages[self.tables[request_id][position // block_size]], position % block_size

    def _read(self, request_id: str, length: int) -> list[int]:
        tokens = []
        for position in range(max(0, length - (self.config.window or length)), length):
            page, offset = self._slot(request_id, position)
            token = page[offset]
            assert token is not None, f"{request_id} reads position {position}, which nobody wrote"
            tokens.append(token)
        return tokens
