"""Attention over latent vectors, which are keys and values in one (DeepSeek-V2, sections 2.1.2 and 2.1.3)."""

from __future__ import annotations

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from quire_engine.attention.context import current_context
from quire_engine.attention.paged_attention import PagedAttention


class LatentAttention(PagedAttention):
    """One vector a token is cached, [latent, rotated key], from which keys and values of all heads are projected.

    Queries that look at cached tokens are taken into the latent space, so that no key or value of a head is made:
    q_h . (K_h c) = (K_h^T q_h) . c, and the sum over V_h c is V_h times the sum over c. That costs more for each
    pair of tokens and less for each token seen, so that a prompt from its first token on is computed the usual way.
    """

    num_cached = 1
    has_kernels = False

    def __init__(self, num_heads: int, width: int, *, scale: float) -> None:
        super().__init__(num_heads, 1, width, scale=scale)

    def over_latents(
        self, q: torch.Tensor, vectors: torch.Tensor, key_projection: torch.Tensor, value_projection: torch.Tensor
    ) -> torch.Tensor:
        """Queries [num_tokens, num_heads, nope + rope], of which the last part is rotated.

        Vectors [num_tokens, 1, latent + rope], K [num_heads, nope, latent] and V [num_heads, value, latent]
        -> [num_tokens, num_heads, value].
        """
        context, num_decodes = current_context(), current_context().num_decodes
        self.k_cache.flatten(0, 1).index_copy_(0, context.slots, vectors)
        out = q.new_empty(*q.shape[:2], value_projection.shape[1])
        if num_decodes:
            queries = _to_latent(q[:num_decodes], key_projection)
            attended = torch.empty_like(queries)
            self._decode(queries, attended, context)
            out[:num_decodes] = _from_latent(attended, value_projection)
        for span in context.prefills:
            rows = slice(span.first, span.first + span.count)
            if span.start == 0:
                out[rows] = self._from_start(q[rows], vectors[rows, 0], key_projection, value_projection)
                continue
            queries = _to_latent(q[rows], key_projection)
            attended = torch.empty_like(queries)
            self._prefill(queries, vectors[rows], vectors[rows], attended, span)
            out[rows] = _from_latent(attended, value_projection)
        return out

    def _from_start(
        self, q: torch.Tensor, vectors: torch.Tensor, key_projection: torch.Tensor, value_projection: torch.Tensor
    ) -> torch.Tensor:
        """A sequence's first tokens, with the keys and values of each head."""
        latent, rope = vectors[:, : key_projection.shape[2]], vectors[:, key_projection.shape[2] :]
        keys = torch.cat(
            (_project(latent, key_projection), rope[:, None].expand(-1, self.num_heads, -1)),
            dim=-1,
        )
        values = _project(latent, value_projection)
        size = values.shape[2]
        # Torch's fast kernels want keys and values of one size.
        values = pad(values, (0, max(0, keys.shape[2] - size)))
        q, keys, values = (x.transpose(0, 1)[None] for x in (q, keys, values))
        attended = scaled_dot_product_attention(q, keys, values, is_causal=True, scale=self.scale)
        return attended[0].transpose(0, 1)[..., :size]

    def _gather(self, blocks: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors of `blocks` for both: of what is attended to the first part is the value."""
        vectors = self.k_cache.index_select(0, blocks).view(size, 1, -1, self.head_dim)
        return vectors, vectors


def _project(latent: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """[num_tokens, latent] by [num_heads, size, latent] -> [num_tokens, num_heads, size]."""
    return torch.einsum("tr,hnr->thn", latent, projection)


def _to_latent(q: torch.Tensor, key_projection: torch.Tensor) -> torch.Tensor:
    """[num_tokens, num_heads, nope + rope] -> [num_tokens, num_heads, latent + rope]."""
    nope = key_projection.shape[1]
    return torch.cat((torch.einsum("thn,hnr->thr", q[..., :nope], key_projection), q[..., nope:]), dim=-1)


def _from_latent(attended: torch.Tensor, value_projection: torch.Tensor) -> torch.Tensor:
    """[num_tokens, num_heads, latent + rope] -> [num_tokens, num_heads, value]."""
    latent = attended[..., : value_projection.shape[2]]
    return torch.einsum("thr,hvr->thv", latent, value_projection)
