"""The tokens whose logits a request adjusts: those that it has seen, or that it gave a bias. Kept on the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from quire_engine.core.step import NewSequence
from quire_engine.kernels.transfer import to_device
from quire_engine.memory_plan.plan import SEEN_PAGE
from quire_engine.sampling.adjustments import NEVER_SEEN, Adjustments, SeenTokens


@dataclass(slots=True)
class _Line:
    """The host's view of one request's tokens, which have columns: 0 .. SEEN_PAGE - 1 are in its first page."""

    repetition: float
    frequency: float
    presence: float
    pages: list[int] = field(default_factory=list)
    column_of: dict[int, int] = field(default_factory=dict)  # by token
    counts: list[int] = field(default_factory=list)  # of the output, by column


class TokenTable:
    """Pages of tokens, of which each request that has penalties or biases holds as many as it needs.

    A step changes the columns of its new tokens alone. The memory, of `num_pages`, is there from the first request that
    needs it to the last, and planned for: see `seen_pages`.
    """

    def __init__(self, device: torch.device, num_pages: int) -> None:
        self._device = device
        self._num_pages = num_pages
        self._lines: dict[int, _Line] = {}  # by row of the batch
        self._seen: SeenTokens | None = None
        self._free: list[int] = []

    @property
    def num_bytes(self) -> int:
        """Of the device's memory."""
        seen = self._seen
        return 0 if seen is None else sum(t.nbytes for t in (seen.token_ids, seen.biases, seen.counts))

    def add(self, row: int, sequence: NewSequence) -> None:
        """Meet a request. Without penalties and biases it has no line."""
        params = sequence.params
        if not params.penalized and not params.logit_bias:
            return
        line = _Line(params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
        self._lines[row] = line
        biases = params.logit_bias or {}
        # A prompt's tokens matter to the repetition penalty alone.
        prompt = sequence.token_ids[: sequence.num_prompt_tokens] if params.repetition_penalty != 1.0 else []
        output = sequence.token_ids[sequence.num_prompt_tokens :]
        line.column_of = {token: column for column, token in enumerate(dict.fromkeys((*biases, *prompt, *output)))}
        line.counts = [0] * len(line.column_of)
        for token in output if params.penalized else ():
            line.counts[line.column_of[token]] += 1
        self._fill(line, biases, {*prompt, *output})

    def remove(self, row: int) -> None:
        line = self._lines.pop(row, None)
        if line is None:
            return
        self._free += line.pages
        if not self._lines:
            self._seen = None

    def count(self, new_tokens: Iterable[tuple[int, Sequence[int]]]) -> None:
        """Count output tokens, given as (row, tokens)."""
        changed: dict[tuple[int, int], tuple[int, int]] = {}  # (page, its column) -> (token, its count)
        for row, tokens in new_tokens:
            line = self._lines.get(row)
            if line is None:
                continue
            for token in tokens:
                column = line.column_of.setdefault(token, len(line.column_of))
                if column == len(line.counts):
                    line.counts.append(0)
                    self._give_pages(line)
                line.counts[column] += 1
                page, within = divmod(column, SEEN_PAGE)
                changed[line.pages[page], within] = (token, line.counts[column])
        if not changed:
            return
        seen = self._tokens()
        places = self._to_device(np.array([*changed], dtype=np.int64).T)
        what = self._to_device(np.array([*changed.values()], dtype=np.int32).T)
        seen.token_ids[places[0], places[1]] = what[0]
        seen.counts[places[0], places[1]] = what[1]

    def adjustments(self, rows: Sequence[int]) -> Adjustments | None:
        """What to adjust when the batch's i-th row of logits is that of `rows[i]`. None for nothing."""
        lines = [(i, self._lines[row]) for i, row in enumerate(rows) if row in self._lines] if self._lines else []
        lines = [(i, line) for i, line in lines if line.column_of]
        if not lines:
            return None
        sizes = np.array([len(line.pages) for _, line in lines])
        filled = np.full(sizes.sum(), SEEN_PAGE, dtype=np.int64)
        filled[sizes.cumsum() - 1] = [(len(line.column_of) - 1) % SEEN_PAGE + 1 for _, line in lines]
        of_rows = np.repeat(np.array([i for i, _ in lines], dtype=np.int64), sizes)
        pages = np.fromiter((page for _, line in lines for page in line.pages), np.int64, len(filled))
        where = self._to_device(np.stack([of_rows, pages, filled]))
        penalties = np.array([(line.repetition, line.frequency, line.presence) for _, line in lines], dtype=np.float32)
        of_pages = self._to_device(np.repeat(penalties, sizes, axis=0).T)
        return Adjustments(where[0], where[1], where[2], self._tokens(), of_pages[0], of_pages[1], of_pages[2])

    def _fill(self, line: _Line, biases: dict[int, float], seen: set[int]) -> None:
        """Write a whole line. The tokens with a bias come first, and all that follow are seen."""
        self._give_pages(line)
        if not line.pages:
            return
        tokens = np.zeros(len(line.pages) * SEEN_PAGE, dtype=np.int32)
        counts, of_biases = np.zeros_like(tokens), np.zeros_like(tokens, dtype=np.float32)
        tokens[: len(line.column_of)] = [*line.column_of]
        of_biases[: len(biases)] = [*biases.values()]
        counts[: len(line.counts)] = line.counts
        counts[: len(biases)][[token not in seen for token in biases]] = NEVER_SEEN
        table, pages = self._tokens(), self._to_device(np.array(line.pages, dtype=np.int64))
        for whole, own in ((table.token_ids, tokens), (table.counts, counts), (table.biases, of_biases)):
            whole[pages] = self._to_device(own.reshape(-1, SEEN_PAGE))

    def _give_pages(self, line: _Line) -> None:
        """Have the line hold a page for each of its columns. A new one has no bias."""
        self._tokens()
        lacking = -(-len(line.column_of) // SEEN_PAGE) - len(line.pages)
        for _ in range(lacking):
            line.pages.append(self._free.pop())
            self._tokens().biases[line.pages[-1]] = 0.0

    def _tokens(self) -> SeenTokens:
        """The pages, allocated when they are first needed. What nobody has written takes no memory on the CPU."""
        if self._seen is None:
            self._seen = SeenTokens.empty(self._num_pages, self._device)
            self._free = list(range(self._num_pages))[::-1]
        return self._seen

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return to_device(array, self._device)
