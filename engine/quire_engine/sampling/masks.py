"""Which tokens may come next, as one bit a token: small enough to be sent to the device at every step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

_BITS = 32


@dataclass(frozen=True, slots=True)
class TokenMask:
    """For some rows of a batch, the tokens that may come. Bit i % 32 of word i // 32 stands for token i."""

    rows: torch.Tensor  # [masked] int64
    words: torch.Tensor  # [masked, ceil(vocab_size / 32)] int32


def mask_words(token_ids: Iterable[int], vocab_size: int) -> np.ndarray:
    """`token_ids` as [ceil(vocab_size / 32)] int32 words."""
    allowed = np.zeros(-(-vocab_size // _BITS) * _BITS, dtype=np.bool_)
    allowed[np.fromiter(token_ids, dtype=np.int64)] = True
    return np.packbits(allowed, bitorder="little").view(np.int32)


def apply_mask(logits: torch.Tensor, mask: TokenMask) -> None:
    """Set to -inf, in place, the `logits` [rows, vocab_size] of tokens that may not come."""
    bits = torch.arange(_BITS, dtype=torch.int32, device=logits.device)
    allowed = ((mask.words[:, :, None] >> bits) & 1).flatten(1)[:, : logits.shape[-1]].bool()
    logits[mask.rows] = logits[mask.rows].masked_fill(~allowed, float("-inf"))
