"""Attention over latent vectors is attention over the keys and values that are projected from them."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from quire_engine.attention.context import AttentionContext, PrefillSpan, attention_context
from quire_engine.attention.latent_attention import LatentAttention

HEADS, LATENT, NOPE, ROPE, VALUE, BLOCK_SIZE, SCALE = 3, 10, 6, 4, 5, 8, 0.3


def expected(q: torch.Tensor, vectors: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """With every key and value of every head written out."""
    latent, rope = vectors[:, 0, :LATENT], vectors[:, 0, LATENT:]
    k = torch.cat((torch.einsum("tr,hnr->htn", latent, keys), rope.expand(HEADS, -1, -1)), dim=-1)
    v = torch.einsum("tr,hvr->htv", latent, values)
    return scaled_dot_product_attention(q.transpose(0, 1), k, v, is_causal=True, scale=SCALE).transpose(0, 1)


@settings(deadline=None, max_examples=50)
@given(length=st.integers(1, 40), data=st.data())
def test_chunks_and_decodes_give_what_keys_and_values_of_each_head_would(length: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(length)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    q, vectors = draw(length, HEADS, NOPE + ROPE), draw(length, 1, LATENT + ROPE)
    keys, values = draw(HEADS, NOPE, LATENT), draw(HEADS, VALUE, LATENT)
    num_blocks = -(-length // BLOCK_SIZE)
    cache = torch.zeros(1, num_blocks, BLOCK_SIZE, 1, LATENT + ROPE)
    layer = LatentAttention(HEADS, LATENT, ROPE, scale=SCALE)
    layer.bind(cache[0], cache[0], num_blocks * BLOCK_SIZE)
    blocks = torch.randperm(num_blocks, generator=generator)

    start, parts = 0, []
    while start < length:
        end = data.draw(st.integers(start + 1, length))
        where, decodes = torch.arange(start, end), end - start == 1
        context = AttentionContext(
            blocks[where // BLOCK_SIZE] * BLOCK_SIZE + where % BLOCK_SIZE,
            1 if decodes else 0,
            [end] if decodes else [],
            blocks[None] if decodes else torch.zeros(0, 0, dtype=torch.int64),
            [] if decodes else [PrefillSpan(0, end - start, start, blocks[: -(-end // BLOCK_SIZE)])],
        )
        with attention_context(context):
            parts.append(layer.over_latents(q[start:end], vectors[start:end], keys, values))
        start = end
    torch.testing.assert_close(torch.cat(parts), expected(q, vectors, keys, values), atol=1e-4, rtol=1e-4)
