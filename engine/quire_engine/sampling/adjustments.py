"""Penalties and biases: they change the logits of a few tokens a row, those that it has seen or that are named."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire_engine.memory_plan.plan import ADJUSTED_PAGES, SEEN_PAGE

# Assigned, not -inf, to what may not come: where a request forbids all that it allows, something still has to come.
FORBIDDEN = -1e30


# The count of a token that is in neither prompt nor output.
NEVER_SEEN = -1


@dataclass(frozen=True, slots=True)
class SeenTokens:
    """Tokens with what is to be known of each, by page. Where nothing was written, anything may stand."""

    token_ids: torch.Tensor  # [num_pages, SEEN_PAGE] int32
    biases: torch.Tensor  # [num_pages, SEEN_PAGE] float32, added first
    counts: torch.Tensor  # [num_pages, SEEN_PAGE] int32: how often in the output, or `NEVER_SEEN`

    @staticmethod
    def empty(num_pages: int, device: torch.device) -> SeenTokens:
        """Of `num_pages`, nothing written."""
        size = (num_pages, SEEN_PAGE)
        return SeenTokens(
            torch.empty(size, dtype=torch.int32, device=device),
            torch.empty(size, dtype=torch.float32, device=device),
            torch.empty(size, dtype=torch.int32, device=device),
        )


@dataclass(frozen=True, slots=True)
class Adjustments:
    """For some rows of a batch, the pages of tokens to adjust: of a row, each token is in one of them at most.

    Tensors are [pages] on the logits' device.
    """

    rows: torch.Tensor  # int64
    pages: torch.Tensor  # int64, of `seen`
    num_tokens: torch.Tensor  # int64, at least 1: how many columns of the page are filled
    seen: SeenTokens
    repetition: torch.Tensor  # float32, as the following
    frequency: torch.Tensor
    presence: torch.Tensor


def adjust(logits: torch.Tensor, by: Adjustments) -> None:
    """Adjust `logits` [rows, vocab_size] float32 in place.

    The repetition penalty is Keskar et al.'s ("CTRL", section 4.1), with their division turned into a multiplication
    for negative logits; the frequency and presence penalties are those of OpenAI's API reference.
    """
    for first in range(0, len(by.rows), ADJUSTED_PAGES):
        _adjust(logits, by, slice(first, first + ADJUSTED_PAGES))


def _adjust(logits: torch.Tensor, by: Adjustments, some: slice) -> None:
    """By some of the pages: as many as their copies are planned for."""
    pages = by.pages[some]
    filled = torch.arange(SEEN_PAGE, device=logits.device) < by.num_tokens[some, None]
    token_ids = by.seen.token_ids[pages].long()
    # What is not filled repeats the first column, and writes the same value to the same place.
    at = (by.rows[some, None], torch.where(filled, token_ids, token_ids[:, :1]))
    values, counts = logits[at] + by.seen.biases[pages], by.seen.counts[pages]
    repetition, times = by.repetition[some, None], counts.clamp_min(0)
    penalized = torch.where(values > 0, values / repetition, values * repetition)
    values = torch.where(counts > NEVER_SEEN, penalized, values)
    values = values - by.frequency[some, None] * times - by.presence[some, None] * (times > 0)
    logits[at] = torch.where(filled, values, values[:, :1])


@dataclass(frozen=True, slots=True)
class Forbidden:
    """Tokens that may not come, as pairs of a row and a token. Tensors on the logits' device."""

    rows: torch.Tensor  # [pairs] int64
    token_ids: torch.Tensor  # [pairs] int64


def forbid(logits: torch.Tensor, what: Forbidden) -> None:
    """Make, in place, tokens of `logits` [rows, vocab_size] as unlikely as can be."""
    logits[what.rows, what.token_ids] = FORBIDDEN
