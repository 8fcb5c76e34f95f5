"""Attention over latent vectors, which are keys and values in one (DeepSeek-V2, sections 2.1.2 and 2.1.3)."""

from __future__ import annotations

import torch

from quire_engine.attention.paged_attention import PagedAttention


class LatentAttention(PagedAttention):
    """All heads attend to one vector a token, [latent, rotated key], of which the latent part is the value.

    Called with queries [num_tokens, num_heads, latent + rope] and, as keys and as values, the vectors
    [num_tokens, 1, latent + rope]. What it gives is the value in its first part. Only the vectors are cached.
    """

    num_cached = 1

    def __init__(self, num_heads: int, width: int, *, scale: float) -> None:
        super().__init__(num_heads, 1, width, scale=scale)

    def _gather(self, blocks: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        vectors = self.k_cache.index_select(0, blocks).view(size, 1, -1, self.head_dim)
        return vectors, vectors
