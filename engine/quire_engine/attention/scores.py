"""Attention whose scores are bent or biased on their way: soft-capping and ALiBi."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


def soft_capped_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float, softcap: float
) -> torch.Tensor:
    """Attention with scores softcap * tanh(score / softcap) (Gemma 2, section 2).

    q [batch, num_heads, queries, head_dim], k and v [batch, num_kv_heads, keys, head_dim], mask bool, true where a
    key is visible, broadcast to [batch, 1, queries, keys] -> as q.
    """
    groups = q.shape[1] // k.shape[1]
    queries = torch.unflatten(q, 1, (k.shape[1], groups)) * scale
    scores = (queries @ k[:, :, None].transpose(-1, -2)).float()
    scores = torch.tanh(scores / softcap) * softcap
    weights = scores.masked_fill(~mask[:, :, None], float("-inf")).softmax(-1)
    return (weights.to(v.dtype) @ v[:, :, None]).flatten(1, 2)


@dataclass(frozen=True)
class Alibi:
    """Scores that fall with a key's distance (Press et al., ALiBi, section 3): slope x position x `scale` is added.

    `slopes` is [num_heads]. The product is rounded to its dtype, as it was when the model was trained.
    """

    slopes: torch.Tensor
    scale: float = 1.0

    def bias(self, mask: torch.Tensor, slopes: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """What to add, [..., rows, keys] float32, where `mask` is true, else -inf. The nearest key's share is 0.

        `slopes` are those of `self`, shaped to go with the heads; `positions` are the keys'.
        """
        bias = (slopes * positions).float() * self.scale
        bias = bias.masked_fill(~mask, float("-inf"))
        # A softmax minds no constant, and the nearest keys are the ones to be exact about.
        return bias - bias.amax(-1, keepdim=True)


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """How fast each head forgets, [num_heads] float32 (Press et al., ALiBi, section 3)."""
    power = 2 ** math.floor(math.log2(num_heads))
    base = 2.0 ** -(2.0 ** -(math.log2(power) - 3))
    slopes = [base**n for n in range(1, power + 1)]
    base = 2.0 ** -(2.0 ** -(math.log2(2 * power) - 3))
    slopes += [base**n for n in range(1, 2 * (num_heads - power) + 1, 2)]
    return torch.tensor(slopes, dtype=torch.float32)
