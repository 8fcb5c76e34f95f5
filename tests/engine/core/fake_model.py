"""A model of plain ints, and an executor that runs it from its own copy of what the steps said."""

from __future__ import annotations

from dataclasses import dataclass, field

from quire_engine.core.loop import CoreConfig
from quire_engine.core.step import Step, StepResult

VOCAB_SIZE = 97


def next_token(token_ids: list[int]) -> int:
    """The model: the next token depends on every token before it."""
    value = 7
    for token in token_ids:
        value = (value * 31 + token + 1) % 1_000_003
    return value % VOCAB_SIZE


def generate(prompt: list[int], count: int, eos: tuple[int, ...] = ()) -> list[int]:
    """`count` tokens after `prompt`, or up to the first of `eos`."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        tokens.append(next_token(tokens))
        if tokens[-1] in eos:
            break
    return tokens[len(prompt) :]


@dataclass
class PagedExecutor:
    """Keeps the tokens in pages, as a real model keeps keys and values, and reads them back through block tables.

    A page that is handed out too early, shared wrongly or freed twice shows as a wrong token.
    """

    config: CoreConfig
    tables: dict[str, list[int]] = field(default_factory=dict)
    pages: list[list[int | None]] = field(default_factory=list)
    host_pages: list[list[int | None]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

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
        for new in step.new:
            assert new.request_id not in self.tables
            self.tables[new.request_id] = []
        assert len(self.tables) <= config.max_num_seqs
        for block, page in step.swap_out:
            self.host_pages[page] = list(self.pages[block])
        for page, block in step.swap_in:
            self.pages[block] = list(self.host_pages[page])
        for s in step.scheduled:
            assert s.token_ids
            self.tables[s.request_id] += s.new_block_ids
            for position, token in enumerate(s.token_ids, s.start):
                page, offset = self._slot(s.request_id, position)
                page[offset] = token
        tokens = [[next_token(self._read(s.request_id, s.end))] if s.samples else [] for s in step.scheduled]
        return StepResult(tokens)

    def _slot(self, request_id: str, position: int) -> tuple[list[int | None], int]:
        block_size = self.config.block_size
        return self.pages[self.tables[request_id][position // block_size]], position % block_size

    def _read(self, request_id: str, length: int) -> list[int]:
        tokens = []
        for position in range(length):
            page, offset = self._slot(request_id, position)
            token = page[offset]
            assert token is not None, f"{request_id} reads position {position}, which nobody wrote"
            tokens.append(token)
        return tokens
