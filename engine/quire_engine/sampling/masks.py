"""Which tokens may come next, as one bit a token: small enough to be sent to the device at every step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

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
    octets = mask.words.view(torch.uint8).flatten().int()
    addends = _addends(logits.device).index_select(0, octets).view(len(mask.rows), -1)
    logits.index_add_(0, mask.rows, addends[:, : logits.shape[-1]])


@cache
def _addends(device: torch.device) -> torch.Tensor:
    """What to add to the logits of 8 tokens, by the byte that stands for them: [256, 8] float32, 0 or -inf."""
    octets, bits = torch.arange(256, device=device), torch.arange(8, device=device)
    allowed = (octets[:, None] >> bits) & 1
    return torch.zeros(256, 8, device=device).masked_fill_(allowed == 0, float("-inf"))
