"""How likely tokens are, out of logits. Rows are taken a few at a time: a long prompt has more logits than memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from quire_engine.core.step import TokenLogprobs
from quire_engine.memory_plan.plan import logprob_rows


@dataclass(frozen=True, slots=True)
class Ranked:
    """The tokens of some rows among all that could stand there. Tensors on the logits' device."""

    token_ids: torch.Tensor  # [rows] int64
    logprobs: torch.Tensor  # [rows] float32
    ranks: torch.Tensor  # [rows] int64
    top_ids: torch.Tensor  # [rows, count] int64
    top_logprobs: torch.Tensor  # [rows, count] float32

    def as_lists(self, counts: list[int]) -> list[TokenLogprobs]:
        """One entry a row, with `counts[row]` of the likeliest tokens."""
        columns = (self.token_ids, self.logprobs, self.ranks, self.top_ids, self.top_logprobs)
        rows = zip(counts, *(column.tolist() for column in columns), strict=True)
        return [
            TokenLogprobs(token, logprob, rank, top_ids[:count], top_logprobs[:count])
            for count, token, logprob, rank, top_ids, top_logprobs in rows
        ]


def rank(logits: torch.Tensor, token_ids: torch.Tensor, count: int, among: torch.Tensor | None = None) -> Ranked:
    """Find `token_ids` [rows] int64 and the `count` likeliest tokens in `logits` [rows, vocab_size] float32.

    `among` are the same logits, -infinity for tokens that are not to be among the likeliest.
    """
    total = logits.logsumexp(-1, keepdim=True)
    own = logits.gather(-1, token_ids[:, None])
    top, top_ids = (logits if among is None else among).topk(min(count, logits.shape[-1]), dim=-1)
    return Ranked(token_ids, (own - total).squeeze(-1), (logits > own).sum(-1) + 1, top_ids, top - total)


def rank_hidden(
    hidden: torch.Tensor,
    token_ids: torch.Tensor,
    count: int,
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    vocab_size: int,
) -> list[TokenLogprobs]:
    """As `rank`, from the hidden states [rows, hidden_size] that `logits_of` turns into logits, in bounded memory."""
    step = logprob_rows(vocab_size)
    entries: list[TokenLogprobs] = []
    for first in range(0, len(token_ids), step):
        tokens = token_ids[first : first + step]
        entries += rank(logits_of(hidden[first : first + step]).float(), tokens, count).as_lists([count] * len(tokens))
    return entries
