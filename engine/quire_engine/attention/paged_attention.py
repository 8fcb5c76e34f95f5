"""Attention of a mixed batch over a paged KV cache: by kernels on GPUs and CPUs that have them, else in plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from quire_engine.attention.context import AttentionContext, PrefillSpan, current_context
from quire_engine.attention.decode_groups import DecodeGroup, group_decodes
from quire_engine.attention.scores import Alibi, soft_capped_attention
from quire_engine.kernels import cpu
from quire_engine.kernels.choice import by_gpu_kernels
from quire_engine.memory_plan.plan import QUERY_ROWS, SCORES

if TYPE_CHECKING:
    from quire_engine.attention.kernel_attention import KernelAttention

LONG = 1 << 20
"""Pairs of a query and a key of a prompt from which torch's attention takes less time than the CPU's library."""


class PagedAttention(nn.Module):
    """One layer's attention and its part of the KV cache.

    `window` is the number of latest positions a token sees, itself included (Mistral 7B, section 2); None for all.
    `scale` multiplies the scores, 1 / sqrt(head_dim) unless given; `softcap` bounds them, `alibi`
    lowers them by distance.
    """

    k_cache: torch.Tensor  # [num_blocks, block_size, num_kv_heads, head_dim]
    v_cache: torch.Tensor
    num_cached = 2  # of them: keys and values

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        window: int | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        alibi: Alibi | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.window = window
        self.scale = head_dim**-0.5 if scale is None else scale
        self.softcap = softcap
        self.alibi = alibi
        self.fused = softcap is None and alibi is None  # torch has kernels for such scores
        self.max_gathered_tokens = 0
        self.kernels: KernelAttention | None = None

    def bind(self, k_cache: torch.Tensor, v_cache: torch.Tensor, max_gathered_tokens: int) -> None:
        """Attach the cache. What a sequence has not written of its blocks must not be NaN: padding reads it."""
        self.k_cache, self.v_cache = k_cache, v_cache
        self.max_gathered_tokens = max_gathered_tokens
        if by_gpu_kernels(k_cache.device):
            self._use_kernels()

    def _use_kernels(self) -> None:
        from quire_engine.attention.kernel_attention import KernelAttention

        self.kernels = KernelAttention(self)

    @property
    def has_kernels(self) -> bool:
        """Whether kernels for GPUs do it all."""
        return self.kernels is not None

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q [num_tokens, num_heads, head_dim], k and v [num_tokens, num_kv_heads, head_dim] -> as q."""
        context = current_context()
        library = self._library(q, k, v)
        if library is not None:
            return self._by_library(library, q, k, v, context)
        # The whole batch is written before any of it is read: sequences of one step may share blocks.
        self.k_cache.flatten(0, 1).index_copy_(0, context.slots, k)
        self.v_cache.flatten(0, 1).index_copy_(0, context.slots, v)
        if self.kernels is not None:
            return self.kernels.attend(q, context)
        out = torch.empty_like(q)
        if context.num_decodes:
            self._decode(q, out, context)
        for span in context.prefills:
            rows = slice(span.first, span.first + span.count)
            self._prefill(q[rows], k[rows], v[rows], out[rows], span)
        return out

    def rotated(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        *,
        by_neighbours: bool,
    ) -> torch.Tensor:
        """As `forward`, with `q` and `k` that are still to be rotated by cosines and sines. Of `kernels` alone."""
        assert self.kernels is not None
        return self.kernels.rotated(q, k, v, rotation, current_context(), by_neighbours=by_neighbours)

    @property
    def suits_library(self) -> bool:
        """Whether the library of kernels for CPUs has this kind of attention."""
        wide = self.head_dim % 16 == 0 and self.head_dim <= cpu.LARGEST_HEAD
        return wide and self.kernels is None and self.alibi is None

    def _library(self, *new: torch.Tensor) -> cpu.Library | None:
        return cpu.library_for(self.k_cache, *new) if self.suits_library else None

    def _by_library(
        self, library: cpu.Library, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, context: AttentionContext
    ) -> torch.Tensor:
        """As `forward`, with keys and values read where they are in the cache."""
        library.keep(k, v, self.k_cache, self.v_cache, context.slots)
        out = q.new_empty(q.shape)

        def attend(rows: slice, tables: torch.Tensor, lengths: torch.Tensor) -> None:
            library.attention(
                q[rows],
                self.k_cache,
                self.v_cache,
                out[rows],
                tables,
                lengths,
                window=self.window,
                scale=self.scale,
                softcap=self.softcap,
            )

        if context.num_decodes:
            attend(slice(0, context.num_decodes), context.decode_blocks, context.ends_on_host())
        for span in context.prefills:
            rows = slice(span.first, span.first + span.count)
            if self.leaves_to_torch(span):
                self._prefill(q[rows], k[rows], v[rows], out[rows], span)
            else:
                attend(rows, span.blocks[None], span.length_on_host())
        return out

    def leaves_to_torch(self, span: PrefillSpan) -> bool:
        """Whether torch's attention takes less time for it than the CPU's library."""
        return self.fused and self.window is None and span.count * (span.start + span.count) >= LONG

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
                with_positions=self.alibi is not None,  # of all layers of a model, or of none
            )
        for group in groups:
            size = len(group.rows)
            queries = q[group.rows].view(size, self.num_kv_heads, -1, self.head_dim)
            keys, values = self._gather(group.blocks, size)
            if self.fused:
                attended = scaled_dot_product_attention(queries, keys, values, attn_mask=group.mask, scale=self.scale)
            else:
                attended = self._attend_group(queries, keys, values, group)
            out[group.rows] = attended.reshape(size, self.num_heads, self.head_dim)

    def _prefill(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, span: PrefillSpan) -> None:
        queries = q.transpose(0, 1)[None]
        if span.start == 0:
            keys, values = k.transpose(0, 1)[None], v.transpose(0, 1)[None]
        else:
            keys, values = self._gather(span.blocks, 1)
        whole = span.start == 0 and (self.window is None or span.count <= self.window)
        if whole and self.fused:
            attended = scaled_dot_product_attention(
                queries, keys, values, is_causal=True, scale=self.scale, enable_gqa=True
            )
            out.copy_(attended[0].transpose(0, 1))
            return
        step = QUERY_ROWS
        if not self.fused:
            step = max(1, min(step, SCORES // (self.num_heads * (span.start + span.count))))
        for begin in range(0, span.count, step):
            end = min(begin + step, span.count)
            first, last = span.start + begin, span.start + end
            low = 0 if self.window is None else max(0, first - self.window + 1)
            query_positions = torch.arange(first, last, device=q.device)[:, None]
            key_positions = torch.arange(low, last, device=q.device)[None]
            mask = key_positions <= query_positions
            if self.window is not None:
                mask &= key_positions > query_positions - self.window
            attended = self._attend(
                queries[:, :, begin:end], keys[:, :, low:last], values[:, :, low:last], mask, key_positions
            )
            out[begin:end] = attended[0].transpose(0, 1)

    def _attend_group(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, group: DecodeGroup) -> torch.Tensor:
        """Queries [size, num_kv_heads, heads of each, head_dim] over keys [size, num_kv_heads, length, head_dim]."""
        if self.softcap is not None:
            return soft_capped_attention(q, k, v, group.mask, self.scale, self.softcap)
        assert self.alibi is not None
        assert group.positions is not None
        slopes = self.alibi.slopes.view(self.num_kv_heads, -1, 1)
        bias = self.alibi.bias(group.mask, slopes, group.positions)
        return scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=self.scale)

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Queries [1, num_heads, rows, head_dim] over keys at `positions` [1, length], where `mask` [rows, length]."""
        if self.softcap is not None:
            return soft_capped_attention(q, k, v, mask[None, None], self.scale, self.softcap)
        if self.alibi is not None:
            mask = self.alibi.bias(mask, self.alibi.slopes[:, None, None], positions).to(q.dtype)
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale, enable_gqa=True)

    def _gather(self, blocks: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `blocks` [size * each], as [size, num_kv_heads, each * block_size, head_dim]."""
        shape = (size, -1, self.num_kv_heads, self.head_dim)
        keys = self.k_cache.index_select(0, blocks).view(shape).transpose(1, 2)
        values = self.v_cache.index_select(0, blocks).view(shape).transpose(1, 2)
        return keys, values
