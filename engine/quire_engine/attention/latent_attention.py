"""Attention over latent vectors, which are keys and values in one (DeepSeek-V2, sections 2.1.2 and 2.1.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from quire_engine.attention.context import AttentionContext, PrefillSpan, current_context
from quire_engine.attention.paged_attention import PagedAttention

if TYPE_CHECKING:
    from quire_engine.attention.kernel_latent_attention import KernelLatentAttention


class LatentAttention(PagedAttention):
    """One vector a token is cached, [latent, rotated key], from which keys and values of all heads are projected.

    Queries that look at cached tokens are taken into the latent space, so that no key or value of a head is made:
    q_h . (K_h c) = (K_h^T q_h) . c, and the sum over V_h c is V_h times the sum over c. That costs more for each
    pair of tokens and less for each token seen, so that a prompt from its first token on is computed the usual way.
    """

    num_cached = 1

    def __init__(self, num_heads: int, rank: int, rope: int, *, scale: float) -> None:
        """Of `rank` numbers a value is made; `rope` numbers behind them are the rotated part of a key."""
        super().__init__(num_heads, 1, rank + rope, scale=scale)
        self.rank = rank
        self.latent_kernels: KernelLatentAttention | None = None

    def _use_kernels(self) -> None:
        from quire_engine.attention.kernel_latent_attention import KernelLatentAttention

        self.latent_kernels = KernelLatentAttention(self.k_cache, self.num_heads, self.rank, self.scale)

    @property
    def has_kernels(self) -> bool:
        return self.latent_kernels is not None

    def over_latents(
        self, q: torch.Tensor, vectors: torch.Tensor, key_projection: torch.Tensor, value_projection: torch.Tensor
    ) -> torch.Tensor:
        """Queries [num_tokens, num_heads, nope + rope], of which the last part is rotated.

        Vectors [num_tokens, 1, rank + rope], K [num_heads, nope, rank] and V [num_heads, value, rank]
        -> [num_tokens, num_heads, value].
        """
        context = current_context()
        self.k_cache.flatten(0, 1).index_copy_(0, context.slots, vectors)
        out = q.new_empty(*q.shape[:2], value_projection.shape[1])
        for rows, attend in self._in_latent_space(vectors, context):
            out[rows] = _from_latent(attend(_to_latent(q[rows], key_projection)), value_projection)
        for span in context.prefills:
            if span.start == 0:
                rows = slice(span.first, span.first + span.count)
                out[rows] = self._from_start(q[rows], vectors[rows, 0], key_projection, value_projection)
        return out

    def _in_latent_space(
        self, vectors: torch.Tensor, context: AttentionContext
    ) -> Iterator[tuple[slice, Callable[[torch.Tensor], torch.Tensor]]]:
        """Rows that look back at cached tokens, and what takes their latent queries to what those attend to.

        Rows of prompts from the first token on may lie among them.
        """
        kernels, decodes = self.latent_kernels, slice(0, context.num_decodes)
        if context.num_decodes:
            yield decodes, partial(self._decodes if kernels is None else kernels.decodes, context=context)
        spans = [span for span in context.prefills if span.start]
        if kernels is not None and spans:
            yield slice(spans[0].first, spans[-1].first + spans[-1].count), partial(kernels.chunks, context=context)
        elif kernels is None:
            for span in spans:
                rows = slice(span.first, span.first + span.count)
                yield rows, partial(self._chunk, vectors=vectors[rows], span=span)

    def _decodes(self, queries: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        attended = torch.empty_like(queries)
        self._decode(queries, attended, context)
        return attended

    def _chunk(self, queries: torch.Tensor, vectors: torch.Tensor, span: PrefillSpan) -> torch.Tensor:
        attended = torch.empty_like(queries)
        self._prefill(queries, vectors, vectors, attended, span)
        return attended

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
    """[num_tokens, num_heads, latent, or more behind it] -> [num_tokens, num_heads, value]."""
    latent = attended[..., : value_projection.shape[2]]
    return torch.einsum("thr,hvr->thv", latent, value_projection)
