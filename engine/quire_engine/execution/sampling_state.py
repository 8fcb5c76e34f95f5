"""How each running request wants its tokens chosen, by row of the batch."""

from __future__ import annotations

import numpy as np
import torch

from quire_engine.core.randomness import uniform
from quire_engine.core.step import NewSequence
from quire_engine.sampling.sampler import SamplingBatch


class SamplingState:
    """Host arrays of one entry a row, written when a request arrives and read at each step."""

    def __init__(self, num_rows: int, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._greedy = np.zeros(num_rows, dtype=np.bool_)
        self._temperature = np.ones(num_rows, dtype=np.float32)
        self._top_k = np.full(num_rows, vocab_size, dtype=np.int64)
        self._top_p = np.ones(num_rows, dtype=np.float32)
        self._min_p = np.zeros(num_rows, dtype=np.float32)
        self._seeds = [0] * num_rows
        self._logprobs: dict[int, int] = {}
        # (tokens that may not come yet, the length from which on they may), where min_tokens asks for it
        self._held_back: dict[int, tuple[list[int], int]] = {}

    def set(self, row: int, sequence: NewSequence) -> None:
        params = sequence.params
        self._greedy[row] = params.greedy
        self._temperature[row] = 1.0 if params.greedy else params.temperature
        limited = not params.greedy
        self._top_k[row] = min(params.top_k, self._vocab_size) if limited and params.top_k > 0 else self._vocab_size
        self._top_p[row] = params.top_p if limited else 1.0
        self._min_p[row] = params.min_p if limited else 0.0
        self._seeds[row] = sequence.seed
        self._logprobs.pop(row, None)
        if params.logprobs is not None:
            self._logprobs[row] = params.logprobs
        self._held_back.pop(row, None)
        tokens = [*params.stop_token_ids, *(() if params.ignore_eos else self._eos_token_ids)]
        if params.min_tokens > 0 and tokens:
            self._held_back[row] = (tokens, sequence.num_prompt_tokens + params.min_tokens)

    def batch(self, rows: list[int], lengths: list[int], device: torch.device) -> SamplingBatch:
        """The choices for `rows`, whose sequences have `lengths` tokens: the next one's position."""
        greedy = self._greedy[rows]
        all_greedy = bool(greedy.all())
        top_k, top_p, min_p = self._top_k[rows], self._top_p[rows], self._min_p[rows]
        numbers = [0.0 if g else uniform(self._seeds[r], n) for r, n, g in zip(rows, lengths, greedy, strict=True)]
        forbidden = []
        if self._held_back:
            for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                tokens, until = self._held_back.get(row, ([], 0))
                if length < until:
                    forbidden.append((i, tokens))
        logprobs = []
        if self._logprobs:
            logprobs = [(i, self._logprobs[row]) for i, row in enumerate(rows) if row in self._logprobs]

        def on_device(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        return SamplingBatch(
            greedy=on_device(greedy),
            all_greedy=all_greedy,
            any_greedy=bool(greedy.any()),
            temperature=on_device(self._temperature[rows]),
            top_k=on_device(top_k) if (top_k < self._vocab_size).any() else None,
            top_p=on_device(top_p) if (top_p < 1.0).any() else None,
            min_p=on_device(min_p) if (min_p > 0.0).any() else None,
            uniform=torch.tensor(numbers, dtype=torch.float64, device=device),
            forbidden=forbidden,
            logprobs=logprobs,
        )
