"""The greatest logit of each row."""

from __future__ import annotations

import numpy as np
import torch

from quire_engine.core.step import NO_TOKEN


def greatest(logits: torch.Tensor) -> torch.Tensor:
    """The first of the greatest elements of each row, [rows, vocab_size] -> [rows] int64.

    `NO_TOKEN` for a row that holds NaN or infinity, or -infinity alone.
    """
    if logits.device.type != "cpu":
        return by_torch(logits)
    return torch.from_numpy(_by_numpy(logits.float().numpy()))


def by_torch(logits: torch.Tensor) -> torch.Tensor:
    """As `greatest`, without a wait for the device."""
    best = logits.argmax(-1)  # of a row with NaN, that
    return best.masked_fill(~logits.gather(-1, best[:, None]).squeeze(-1).isfinite(), NO_TOKEN)


def _by_numpy(logits: np.ndarray) -> np.ndarray:
    """10 times as fast as torch."""
    best: np.ndarray = logits.argmax(-1)  # of a row with NaN, that
    best[~np.isfinite(logits[np.arange(len(logits)), best])] = NO_TOKEN
    return best
