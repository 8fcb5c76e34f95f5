"""Sequences in pages, and attention over them written out in float64."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch


@dataclass
class Case:
    """Sequences of (tokens before, tokens of this step), each with pages anywhere in the cache."""

    sequences: list[tuple[int, int]]
    group: int = 2
    num_kv_heads: int = 2
    head_dim: int = 16
    page: int = 8
    window: int | None = None
    softcap: float | None = None
    slopes: torch.Tensor | None = None
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=generator).to(self.dtype)

        counts = [-(-(before + count) // self.page) for before, count in self.sequences]
        free = list(range(sum(counts) + 3))
        random.Random(self.seed).shuffle(free)
        shape = (len(free), self.page, self.num_kv_heads, self.head_dim)
        # A kernel must read nothing that was not written.
        self.k_cache, self.v_cache = (torch.full(shape, float("nan"), dtype=self.dtype) for _ in range(2))
        self.tables = torch.zeros(len(counts), max(counts, default=0), dtype=torch.int64)
        self.q = draw(sum(count for _, count in self.sequences), self.num_kv_heads * self.group, self.head_dim)
        self.of_sequences = []
        for i, (before, count) in enumerate(self.sequences):
            length = before + count
            table = torch.tensor([free.pop() for _ in range(counts[i])])
            self.tables[i, : len(table)] = table
            at = torch.arange(length)
            k, v = (draw(length, self.num_kv_heads, self.head_dim) for _ in range(2))
            self.k_cache[table[at // self.page], at % self.page] = k
            self.v_cache[table[at // self.page], at % self.page] = v
            if self.window is not None:  # pages that no token of this step sees are another's by now
                left = table[: max(before - self.window + 1, 0) // self.page]
                self.k_cache[left], self.v_cache[left] = float("nan"), float("nan")
            self.of_sequences.append((k, v))

    def expected(self, scale: float) -> torch.Tensor:
        """[num_tokens, num_heads, head_dim] float64."""
        parts, first = [], 0
        for (before, count), (k, v) in zip(self.sequences, self.of_sequences, strict=True):
            q = self.q[first : first + count].double()
            k, v = (x.double().repeat_interleave(self.group, dim=1) for x in (k, v))
            scores = torch.einsum("nhd,lhd->hnl", q, k) * scale
            if self.softcap is not None:
                scores = torch.tanh(scores / self.softcap) * self.softcap
            queries, keys = torch.arange(before, before + count)[:, None], torch.arange(before + count)[None]
            if self.slopes is not None:
                scores = scores + (self.slopes[:, None, None] * keys).double()
            hidden = keys > queries
            if self.window is not None:
                hidden |= keys <= queries - self.window
            weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            parts.append(torch.einsum("hnl,lhd->nhd", weights, v))
            first += count
        return torch.cat(parts)


TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
