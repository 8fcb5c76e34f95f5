"""Attention over whole prompts in both directions, which needs no cache."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from quire_engine.attention.context import current_context


class WholeAttention(nn.Module):
    """One layer's attention of an encoder: each token sees all tokens of its prompt (Devlin et al., BERT, section 3).

    The batch holds whole prompts: no chunks, no decodes. `scale` multiplies the scores.
    """

    def __init__(self, head_dim: int, *, scale: float | None = None) -> None:
        super().__init__()
        self.scale = head_dim**-0.5 if scale is None else scale

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q [num_tokens, num_heads, head_dim], k and v [num_tokens, num_kv_heads, head_dim] -> as q."""
        context = current_context()
        out = torch.empty_like(q)
        # A prompt of one token sees itself alone.
        alone = v[: context.num_decodes]
        out[: context.num_decodes] = alone.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        for span in context.prefills:
            rows = slice(span.first, span.first + span.count)
            queries, keys, values = (part[rows].transpose(0, 1)[None] for part in (q, k, v))
            attended = scaled_dot_product_attention(queries, keys, values, scale=self.scale, enable_gqa=True)
            out[rows] = attended[0].transpose(0, 1)
        return out
