"""From logits to tokens, for a whole batch. Each row's result depends on that row alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from quire_engine.core.step import NO_TOKEN, TokenLogprobs
from quire_engine.memory_plan.plan import SORTED_ROWS
from quire_engine.sampling.adjustments import Adjustments, Forbidden, adjust, forbid
from quire_engine.sampling.greatest import greatest
from quire_engine.sampling.logprobs import Ranked, rank
from quire_engine.sampling.masks import TokenMask, apply_mask
from quire_engine.sampling.radix import where_sums_reach

# Top-k and top-p look at the best tokens only; where these do not decide, at the whole row.
_HEAD = 1024


@dataclass(slots=True)
class SamplingBatch:
    """How to choose each row's token. Tensors are [rows], on the logits' device."""

    greedy: torch.Tensor  # bool
    all_greedy: bool
    any_greedy: bool
    temperature: torch.Tensor  # float32; any positive number where greedy
    top_k: torch.Tensor | None  # int64, vocab_size for all; None where no row limits it
    top_p: torch.Tensor | None  # float32; None where no row limits it
    min_p: torch.Tensor | None  # float32; None where no row limits it
    uniform: torch.Tensor  # float64 in [0, 1): the row's random number for this position
    adjustments: Adjustments | None = None
    forbidden: Forbidden | None = None  # gives way where a row's mask leaves nothing else
    mask: TokenMask | None = None  # what alone may come
    # (row, how many of the likeliest tokens) where logprobs are asked for
    logprobs: list[tuple[int, int]] = field(default_factory=list)
    ranks_allowed: list[int] = field(default_factory=list)  # rows whose likeliest tokens are of those in their mask

    @classmethod
    def of_greatest(cls, nothing: torch.Tensor, logprobs: list[tuple[int, int]]) -> SamplingBatch:
        """Where all rows are greedy, so that what draws of them is not read: `nothing` stands for it."""
        return cls(
            greedy=nothing,
            all_greedy=True,
            any_greedy=True,
            temperature=nothing,
            top_k=None,
            top_p=None,
            min_p=None,
            uniform=nothing,
            logprobs=logprobs,
        )

    @property
    def by_greatest(self) -> bool:
        """Whether nothing but the greatest logit of each row is looked for: logits of any precision will do."""
        shaped = self.adjustments is not None or self.forbidden is not None or self.mask is not None
        return self.all_greedy and not shaped and not self.logprobs


@dataclass(slots=True)
class Chosen:
    """A token for each row, or `NO_TOKEN`, and how likely those were for which it was asked. On the logits' device."""

    token_ids: torch.Tensor  # [rows] int64
    ranked: Ranked | None = None  # of the rows of `SamplingBatch.logprobs`
    asked: list[tuple[int, int]] = field(default_factory=list)  # those

    def logprobs(self) -> dict[int, TokenLogprobs]:
        """By row, where they were asked for. Waits for the device."""
        if self.ranked is None:
            return {}
        rows, counts = (list(column) for column in zip(*self.asked, strict=True))
        return dict(zip(rows, self.ranked.as_lists(counts), strict=True))


Draw = Callable[[torch.Tensor, SamplingBatch], torch.Tensor]
"""From probabilities [rows, vocab_size] float32, which may be written to, and the limits of a batch: [rows] int64."""
Best = Callable[[torch.Tensor], torch.Tensor]
"""As `greatest`."""


def draw_within(probabilities: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """A token of those of each row that the limits leave. A `Draw`."""
    restrict(probabilities, batch.top_k, batch.top_p, batch.min_p)
    return draw(probabilities, batch.uniform)


def choose(logits: torch.Tensor, batch: SamplingBatch, drawing: Draw = draw_within, best: Best = greatest) -> Chosen:
    """Choose a token for each row of `logits` [rows, vocab_size] float32, which may be written to.

    They may be of less precision where the batch chooses `by_greatest`.
    """
    if not batch.logprobs:
        return Chosen(sample(logits, batch, drawing, best))
    rows, counts = (list(column) for column in zip(*batch.logprobs, strict=True))
    on_device = torch.tensor(rows, dtype=torch.int64).to(logits.device)
    raw = logits[on_device]  # a copy, before anything is forbidden or scaled
    token_ids = sample(logits, batch, drawing, best)
    among = raw
    if batch.ranks_allowed:
        where = set(batch.ranks_allowed)
        limited = [i for i, row in enumerate(rows) if row in where]
        among = raw.clone()
        among[limited] = logits[[rows[i] for i in limited]]
    ranked = rank(raw, token_ids[on_device].clamp_min(0), max(counts), among)
    return Chosen(token_ids, ranked, batch.logprobs)


def sample(
    logits: torch.Tensor, batch: SamplingBatch, drawing: Draw = draw_within, best: Best = greatest
) -> torch.Tensor:
    """Choose a token for each row of `logits` [rows, vocab_size] float32, which may be written to: [rows] int64.

    `NO_TOKEN` for a row that holds NaN or infinity, or -infinity alone. It costs no look at the whole row: the greatest
    element of such a row is not finite either, and a softmax makes all of it NaN.
    """
    shape(logits, batch)
    if batch.all_greedy:
        return best(logits)
    probabilities = torch.softmax(logits / batch.temperature[:, None], dim=-1)
    wrong = _is_nan(probabilities)
    drawn = drawing(probabilities, batch)
    chosen = torch.where(batch.greedy, best(logits), drawn) if batch.any_greedy else drawn
    return chosen.masked_fill(wrong, NO_TOKEN)


def shape(logits: torch.Tensor, batch: SamplingBatch) -> None:
    """Apply to `logits`, in place, what a request asks for beside temperature and limits: it holds for greedy too."""
    if batch.adjustments is not None:
        adjust(logits, batch.adjustments)
    if batch.forbidden is not None:
        forbid(logits, batch.forbidden)
    if batch.mask is not None:
        apply_mask(logits, batch.mask)


def draw(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative sum of `weights` [rows, vocab_size] at `uniform` [rows] float64: [rows] int64.

    Weights need not sum to 1. A token of weight 0 never comes, but in a row without any weight, whose token is
    arbitrary.
    """
    sums = weights.cumsum(-1, dtype=torch.float64)
    total = sums[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(uniform[:, None] * total, below_total)
    return torch.searchsorted(sums, target, right=True).squeeze(-1).clamp_max_(weights.shape[-1] - 1)


def restrict(
    probabilities: torch.Tensor, top_k: torch.Tensor | None, top_p: torch.Tensor | None, min_p: torch.Tensor | None
) -> None:
    """Set to 0, in place, what the limits exclude: first min-p, then top-k, then top-p of what is left.

    Tokens as likely as the last one that is kept are kept too. Rows of NaN stay as they are.
    """
    if min_p is not None:
        least = probabilities.amax(-1, keepdim=True) * min_p[:, None]
        probabilities.masked_fill_(probabilities < least, 0.0)
    if top_k is None and top_p is None:
        return
    rows, vocab_size = probabilities.shape
    k = top_k if top_k is not None else torch.full((rows,), vocab_size, device=probabilities.device)
    p = top_p if top_p is not None else torch.ones(rows, device=probabilities.device)
    limited = (((k < vocab_size) | (p < 1.0)) & ~_is_nan(probabilities)).nonzero().squeeze(-1)
    chosen = probabilities[limited]
    threshold, decided = _threshold(chosen, k[limited], p[limited], min(_HEAD, vocab_size))
    if not bool(decided.all()):
        for rest in torch.split((~decided).nonzero().squeeze(-1), SORTED_ROWS):
            threshold[rest] = _threshold_of_all(chosen[rest], k[limited][rest], p[limited][rest])
    probabilities[limited] = chosen.masked_fill_(chosen < threshold[:, None], 0.0)


def _is_nan(probabilities: torch.Tensor) -> torch.Tensor:
    """Which rows a softmax made NaN, as a whole: [rows] bool."""
    return probabilities[:, 0].isnan()


def _threshold_of_all(probabilities: torch.Tensor, k: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """The least probability that each row keeps."""
    if probabilities.device.type != "cpu":  # where sums of the same numbers may differ in their last bits
        return _threshold(probabilities, k, p, probabilities.shape[-1])[0]
    weights = probabilities.double()
    of_k = where_sums_reach(probabilities, torch.ones_like(weights), k.double())
    in_k = probabilities > of_k[:, None]
    mass = torch.where(in_k, weights, 0.0).sum(-1) + (k - in_k.sum(-1)) * of_k.double()
    of_p = where_sums_reach(probabilities, weights, p.double() * mass)
    return torch.where(p < 1.0, torch.maximum(of_k, of_p), of_k)


def _threshold(
    probabilities: torch.Tensor, k: torch.Tensor, p: torch.Tensor, head: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The least probability that each row keeps, and whether the `head` best tokens were enough to know it."""
    vocab_size = probabilities.shape[-1]
    best = probabilities.topk(head, dim=-1).values
    ranks = torch.arange(head, device=best.device)
    in_k = ranks < k[:, None]
    sums = best.double().cumsum(-1)
    mass = torch.where(
        k <= head,
        sums.gather(-1, (k.clamp_max(head) - 1)[:, None]).squeeze(-1),
        probabilities.double().sum(-1),
    )
    wanted = p.double() * mass
    before = sums - best
    in_p = (before < wanted[:, None]) | (p >= 1.0)[:, None]
    kept = (in_k & in_p).sum(-1).clamp_min(1)
    threshold = best.gather(-1, (kept - 1)[:, None]).squeeze(-1)
    decided = (k <= head) | ((k >= vocab_size) & (kept < head)) | (head == vocab_size)
    return threshold, decided
