"""Attention of a mixed batch over a paged KV cache, in plain torch: the same code on CPU and CUDA."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from quire_engine.attention.context import AttentionContext, PrefillSpan, current_context
from quire_engine.attention.decode_groups import group_decodes

# Rows of queries that attend at once: bounds the mask of a long prompt.
_QUERY_ROWS = 512


class PagedAttention(nn.Module):
    """One layer's attention and its part of the KV cache.

    `window` is the number of latest positions a token sees, itself included (Mistral 7B, section 2); None for all.
    """

    k_cache: torch.Tensor  # [num_blocks, block_size, num_kv_heads, head_dim]
    v_cache: torch.Tensor

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, *, window: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.window = window
        self.max_gathered_tokens = 0

    def bind(self, k_cache: torch.Tensor, v_cache: torch.Tensor, max_gathered_tokens: int) -> None:
        """Attach the cache. It must not hold NaN: padding reads blocks that nobody wrote."""
        self.k_cache, self.v_cache = k_cache, v_cache
        self.max_gathered_tokens = max_gathered_tokens

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q [num_tokens, num_heads, head_dim], k and v [num_tokens, num_kv_heads, head_dim] -> as q."""
        context = current_context()
        # The whole batch is written before any of it is read: sequences of one step may share blocks.
        self.k_cache.flatten(0, 1).index_copy_(0, context.slots, k)
        self.v_cache.flatten(0, 1).index_copy_(0, context.slots, v)
        out = torch.empty_like(q)
        if context.num_decodes:
            self._decode(q, out, context)
        for span in context.prefills:
            rows = slice(span.first, span.first + span.count)
            self._prefill(q[rows], k[rows], v[rows], out[rows], span)
        return out

    def _decode(self, q: torch.Tensor, out: torch.Tensor, context: AttentionContext) -> None:
        """One query a sequence. The query heads of a KV head take the place of the query length."""
        groups = context.groups.get(self.window)
        if groups is None:
            groups = context.groups[self.window] = group_decodes(
                context.decode_lengths,
                context.decode_blocks,
                self.k_cache.shape[1],
                self.window,
                self.max_gathered_tokens,
            )
        for group in groups:
            size = len(group.rows)
            queries = q[group.rows].view(size, self.num_kv_heads, -1, self.head_dim)
            keys, values = self._gather(group.blocks, size)
            attended = scaled_dot_product_attention(queries, keys, values, attn_mask=group.mask)
            out[group.rows] = attended.reshape(size, self.num_heads, self.head_dim)

    def _prefill(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, span: PrefillSpan) -> None:
        queries = q.transpose(0, 1)[None]
        if span.start == 0:
            keys, values = k.transpose(0, 1)[None], v.transpose(0, 1)[None]
        else:
            keys, values = self._gather(span.blocks, 1)
        whole = span.start == 0 and (self.window is None or span.count <= self.window)
        if whole:
            attended = scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
            out.copy_(attended[0].transpose(0, 1))
            return
        for begin in range(0, span.count, _QUERY_ROWS):
            end = min(begin + _QUERY_ROWS, span.count)
            first, last = span.start + begin, span.start + end
            low = 0 if self.window is None else max(0, first - self.window + 1)
            query_positions = torch.arange(first, last, device=q.device)[:, None]
            key_positions = torch.arange(low, last, device=q.device)[None]
            mask = key_positions <= query_positions
            if self.window is not None:
                mask &= key_positions > query_positions - self.window
            attended = scaled_dot_product_attention(
                queries[:, :, begin:end],
                keys[:, :, low:last],
                values[:, :, low:last],
                attn_mask=mask,
                enable_gqa=True,
            )
            out[begin:end] = attended[0].transpose(0, 1)

    def _gather(self, blocks: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `blocks` [size * each], as [size, num_kv_heads, each * block_size, head_dim]."""
        shape = (size, -1, self.num_kv_heads, self.head_dim)
        keys = self.k_cache.index_select(0, blocks).view(shape).transpose(1, 2)
        values = self.v_cache.index_select(0, blocks).view(shape).transpose(1, 2)
        return keys, values
