"""How each running request wants its tokens chosen, by row of the batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch

from quire_engine.core.randomness import uniform
from quire_engine.core.step import NewSequence, ScheduledSequence
from quire_engine.execution.forbidden_tokens import ForbiddenTokens
from quire_engine.execution.token_table import TokenTable
from quire_engine.kernels.transfer import to_device
from quire_engine.memory_plan.plan import seen_pages
from quire_engine.sampling.adjustments import Forbidden
from quire_engine.sampling.masks import TokenMask, mask_words
from quire_engine.sampling.sampler import SamplingBatch

# Smaller ones may be 0 as float32, which any sum reaches, also that of no token. Both keep the likeliest alone.
_LEAST_TOP_P = torch.finfo(torch.float32).tiny


class SamplingState:
    """Written when a request arrives, moved on by its new tokens, and read at each step.

    The token ids of a step bring what was sampled before: so it does not matter who sampled it.
    """

    def __init__(
        self,
        num_rows: int,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        device: torch.device | None = None,
        longest: int | None = None,
    ) -> None:
        """`longest` is the greatest number of tokens of a sequence; None where there is no limit."""
        self._vocab_size = vocab_size
        self._device = device or torch.device("cpu")
        self._nothing = torch.empty(0, device=self._device)
        self._greedy = np.zeros(num_rows, dtype=np.bool_)
        self._temperature = np.ones(num_rows, dtype=np.float32)
        self._top_k = np.full(num_rows, vocab_size, dtype=np.int64)
        self._top_p = np.ones(num_rows, dtype=np.float32)
        self._min_p = np.zeros(num_rows, dtype=np.float32)
        self._seeds = [0] * num_rows
        self._logprobs: dict[int, int] = {}
        self._num_known: dict[int, int] = {}  # tokens that were looked at, of the rows that look back
        self._table = TokenTable(self._device, num_rows * seen_pages(vocab_size, longest))
        self._forbidden = ForbiddenTokens(vocab_size, eos_token_ids)
        self._allowed: dict[int, np.ndarray] = {}  # mask words
        self._ranks_allowed: set[int] = set()
        # Rows that were asked for, and what no token of theirs changes: until requests come or go.
        self._latest: tuple[list[int], SamplingBatch] | None = None

    def add(self, row: int, sequence: NewSequence) -> None:
        """Meet a request, whose known tokens are those of `sequence`."""
        params, self._latest = sequence.params, None
        self._greedy[row] = params.greedy
        self._temperature[row] = 1.0 if params.greedy else params.temperature
        limited = not params.greedy
        self._top_k[row] = min(params.top_k, self._vocab_size) if limited and params.top_k > 0 else self._vocab_size
        self._top_p[row] = max(params.top_p, _LEAST_TOP_P) if limited else 1.0
        self._min_p[row] = params.min_p if limited else 0.0
        self._seeds[row] = sequence.seed
        if params.logprobs is not None:
            self._logprobs[row] = params.logprobs
        if sequence.ranks_allowed:
            self._ranks_allowed.add(row)
        if params.looks_back:
            self._num_known[row] = len(sequence.token_ids)
        if params.allowed_token_ids is not None:
            self._allowed[row] = mask_words(params.allowed_token_ids, self._vocab_size)
        self._table.add(row, sequence)
        self._forbidden.add(row, sequence)

    def remove(self, row: int) -> None:
        self._latest = None
        for by_row in (self._logprobs, self._num_known, self._allowed):
            by_row.pop(row, None)
        self._ranks_allowed.discard(row)
        self._table.remove(row)
        self._forbidden.remove(row)

    def follow(self, scheduled: Iterable[tuple[int, ScheduledSequence]]) -> None:
        """Look at the tokens that are new in a step, given by row."""
        if not self._num_known:
            return
        new_tokens = []
        for row, sequence in scheduled:
            known = self._num_known.get(row)
            if known is not None and sequence.end > known:
                new_tokens.append((row, sequence.token_ids[known - sequence.start :]))
                self._num_known[row] = sequence.end
        self._table.count(new_tokens)
        for row, tokens in new_tokens:
            self._forbidden.follow(row, tokens)

    def batch(
        self, rows: list[int], lengths: list[int], allowed: Sequence[bytes | None] | None = None
    ) -> SamplingBatch:
        """The choices for `rows`, whose sequences have `lengths` tokens: the next one's position.

        `allowed` is what each row's grammar allows, as in `ScheduledSequence`.
        """
        if self._latest is None or self._latest[0] != rows:
            self._latest = rows, self._by_params(rows)
        batch = self._latest[1]
        adjustments, forbidden = self._table.adjustments(rows), self._forbidden_in(rows, lengths)
        mask = self._mask(rows, allowed or [None] * len(rows))
        if batch.all_greedy and (adjustments, forbidden, mask) == (None, None, None):
            return batch
        numbers = [uniform(self._seeds[row], length) for row, length in zip(rows, lengths, strict=True)]
        return replace(
            batch,
            uniform=self._to_device(np.array(numbers, dtype=np.float64)),
            adjustments=adjustments,
            forbidden=forbidden,
            mask=mask,
            ranks_allowed=[i for i, row in enumerate(rows) if row in self._ranks_allowed and allowed and allowed[i]],
        )

    def _by_params(self, rows: list[int]) -> SamplingBatch:
        """What the parameters of `rows` say, whatever their tokens are."""
        greedy = self._greedy[rows]
        logprobs = [(i, self._logprobs[row]) for i, row in enumerate(rows) if row in self._logprobs]
        if greedy.all():  # nothing is drawn, and nothing else is read
            return SamplingBatch.of_greatest(self._nothing, logprobs)
        top_k, top_p, min_p = self._top_k[rows], self._top_p[rows], self._min_p[rows]
        return SamplingBatch(
            greedy=self._to_device(greedy),
            all_greedy=False,
            any_greedy=bool(greedy.any()),
            temperature=self._to_device(self._temperature[rows]),
            top_k=self._to_device(top_k) if (top_k < self._vocab_size).any() else None,
            top_p=self._to_device(top_p) if (top_p < 1.0).any() else None,
            min_p=self._to_device(min_p) if (min_p > 0.0).any() else None,
            uniform=self._to_device(np.zeros(len(rows))),
            logprobs=logprobs,
        )

    def _forbidden_in(self, rows: Sequence[int], lengths: Sequence[int]) -> Forbidden | None:
        pairs = self._forbidden.pairs(rows, lengths)
        if pairs is None:
            return None
        columns = self._to_device(pairs)
        return Forbidden(columns[0], columns[1])

    def _mask(self, rows: Sequence[int], allowed: Sequence[bytes | None]) -> TokenMask | None:
        masked: list[tuple[int, np.ndarray]] = []
        if not self._allowed and allowed.count(None) == len(allowed):
            return None
        for i, (row, of_grammar) in enumerate(zip(rows, allowed, strict=True)):
            words = self._allowed.get(row)
            if of_grammar is not None:
                grammar_words = np.frombuffer(of_grammar, dtype=np.int32)
                both = grammar_words if words is None else words & grammar_words
                # Where the request's own tokens and the grammar's leave nothing, one of its own shows it to the core.
                words = both if words is None or both.any() else words
            if words is not None:
                masked.append((i, words))
        if not masked:
            return None
        indices = np.array([i for i, _ in masked], dtype=np.int64)
        return TokenMask(self._to_device(indices), self._to_device(np.stack([words for _, words in masked])))

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return to_device(array, self._device)
