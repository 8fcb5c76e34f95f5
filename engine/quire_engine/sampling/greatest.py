"""The greatest logit of each row."""

from __future__ import annotations

import numpy as np
import torch

from quire_engine.core.step import NO_TOKEN

# bfloat16 as integers of 16 bits: positive numbers are in order, and infinity and NaN above them. Negative ones have
# the sign bit set, so that as unsigned integers they are above all positive ones, NaN above -infinity again.
_INFINITY, _NEGATIVE_INFINITY = 0x7F80, 0xFF80
_UNSIGNED = np.dtype(np.uint16)


def greatest(logits: torch.Tensor) -> torch.Tensor:
    """The first of the greatest elements of each row, [rows, vocab_size] -> [rows] int64.

    `NO_TOKEN` for a row that holds NaN or infinity, or -infinity alone.
    """
    if logits.device.type != "cpu":
        return by_torch(logits)
    found = _of_positive(logits) if logits.dtype == torch.bfloat16 else None
    return torch.from_numpy(_by_numpy(logits.float().numpy()) if found is None else found)


def by_torch(logits: torch.Tensor) -> torch.Tensor:
    """As `greatest`, without a wait for the device."""
    best = logits.argmax(-1)  # of a row with NaN, that
    return best.masked_fill(~logits.gather(-1, best[:, None]).squeeze(-1).isfinite(), NO_TOKEN)


def _by_numpy(logits: np.ndarray) -> np.ndarray:
    """10 times as fast as torch."""
    best: np.ndarray = logits.argmax(-1)  # of a row with NaN, that
    best[~np.isfinite(logits[np.arange(len(logits)), best])] = NO_TOKEN
    return best


def _of_positive(logits: torch.Tensor) -> np.ndarray | None:
    """Of bfloat16 without a conversion, which takes most of the time; None where a row has to be looked at closely.

    Closely, that is where its greatest element is not positive and finite, or it holds NaN.
    """
    bits = logits.view(torch.int16).numpy()
    unsigned = bits.view(_UNSIGNED)
    # Twice the same, and single numbers: the first calls of a step to other parts of numpy take 20 microseconds each.
    best: np.ndarray = bits.argmax(-1)
    places = enumerate(zip(best.tolist(), unsigned.argmax(-1).tolist(), strict=True))
    plain = all(
        0 < bits.item(row, token) < _INFINITY and unsigned.item(row, last) <= _NEGATIVE_INFINITY
        for row, (token, last) in places
    )
    return best if plain else None
