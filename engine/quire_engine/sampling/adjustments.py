"""Penalties and biases: they change the logits of a few tokens a row, those that it has seen or that are named."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Assigned, not -inf, to what may not come: where a request forbids all that it allows, something still has to come.
FORBIDDEN = -1e30


@dataclass(frozen=True, slots=True)
class Adjustments:
    """For some rows of a batch, the tokens to adjust, each once. Tensors on the logits' device."""

    rows: torch.Tensor  # [adjusted] int64
    num_tokens: torch.Tensor  # [adjusted] int64, at least 1: how many columns of the following are filled
    token_ids: torch.Tensor  # [adjusted, width] int64
    biases: torch.Tensor  # [adjusted, width] float32, added first
    seen: torch.Tensor  # [adjusted, width] bool: in the prompt or in the output
    counts: torch.Tensor  # [adjusted, width] float32: how often in the output
    repetition: torch.Tensor  # [adjusted] float32
    frequency: torch.Tensor  # [adjusted] float32
    presence: torch.Tensor  # [adjusted] float32


def adjust(logits: torch.Tensor, by: Adjustments) -> None:
    """Adjust `logits` [rows, vocab_size] float32 in place.

    The repetition penalty is Keskar et al.'s ("CTRL", section 4.1), with their division turned into a multiplication
    for negative logits; the frequency and presence penalties are those of OpenAI's API reference.
    """
    filled = torch.arange(by.token_ids.shape[1], device=logits.device) < by.num_tokens[:, None]
    # What is not filled repeats the first column, and writes the same value to the same place.
    token_ids = torch.where(filled, by.token_ids, by.token_ids[:, :1])
    at = (by.rows[:, None], token_ids)
    values = logits[at] + by.biases
    repetition = by.repetition[:, None]
    values = torch.where(by.seen, torch.where(values > 0, values / repetition, values * repetition), values)
    values = values - by.frequency[:, None] * by.counts - by.presence[:, None] * (by.counts > 0)
    logits[at] = torch.where(filled, values, values[:, :1])


@dataclass(frozen=True, slots=True)
class Forbidden:
    """Tokens that may not come, as pairs of a row and a token. Tensors on the logits' device."""

    rows: torch.Tensor  # [pairs] int64
    token_ids: torch.Tensor  # [pairs] int64


def forbid(logits: torch.Tensor, what: Forbidden) -> None:
    """Make, in place, tokens of `logits` [rows, vocab_size] as unlikely as can be."""
    logits[what.rows, what.token_ids] = FORBIDDEN
