"""One layer's attention by the kernels for GPUs. To import it imports Triton."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from quire_engine.attention.context import AttentionContext, PrefillSpan
from quire_engine.kernels.gpu.attention import ScoreRules, Spans, attend, attend_decodes, rows_of_tile
from quire_engine.kernels.gpu.rotary import rotate_and_write
from quire_engine.kernels.transfer import to_device

if TYPE_CHECKING:
    from quire_engine.attention.paged_attention import PagedAttention


class KernelAttention:
    """Decodes are split along their length; the parts of prompts are one launch."""

    def __init__(self, layer: PagedAttention) -> None:
        self._caches = layer.k_cache, layer.v_cache
        alibi = layer.alibi
        self._rules = ScoreRules(layer.scale, layer.window, layer.softcap)
        if alibi is not None:
            slopes = alibi.slopes.to(layer.k_cache.device)
            self._rules = ScoreRules(layer.scale, layer.window, layer.softcap, slopes, alibi.scale)
        _, self._tokens = rows_of_tile(layer.num_heads, layer.num_kv_heads, layer.head_dim, layer.k_cache.dtype)

    def rotated(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        context: AttentionContext,
        *,
        by_neighbours: bool,
    ) -> torch.Tensor:
        """Rotate queries and keys, write keys and values to the caches, and attend: see `rotate_and_write`."""
        q = rotate_and_write(q, k, v, *rotation, context.slots, *self._caches, by_neighbours=by_neighbours)
        return self.attend(q, context)

    def attend(self, q: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """What all rows of `q` [num_tokens, num_heads, head_dim] attend to. The caches are written already."""
        out = torch.empty_like(q)
        batch = context.on_device
        if batch is None:
            batch = context.on_device = BatchOnDevice(context, context.prefills)
        num_decodes = context.num_decodes
        if num_decodes:
            tables = context.decode_blocks
            attend_decodes(q[:num_decodes], *self._caches, out[:num_decodes], tables, batch.lengths, self._rules)
        if context.prefills:
            attend(q, *self._caches, out, batch.spans(self._tokens), self._rules)
        return out


class BatchOnDevice:
    """What kernels have to know of a batch beside its block tables: made once a step, for all layers."""

    def __init__(self, context: AttentionContext, prefills: list[PrefillSpan]) -> None:
        """`prefills` are the parts of prompts that kernels attend for."""
        self._device, self._prefills = context.slots.device, prefills
        there = context.lengths_on_device
        self.lengths = self._put(context.decode_lengths) if there is None else there  # [num_decodes] int32
        self._spans: dict[int, Spans] = {}  # by the tokens of a tile

    def spans(self, tokens: int) -> Spans:
        """The parts of prompts in tiles of `tokens`."""
        found = self._spans.get(tokens)
        if found is None:
            made = next(iter(self._spans.values()), None)
            if made is None:
                tables = torch.nn.utils.rnn.pad_sequence([s.blocks for s in self._prefills], batch_first=True)
                rows = self._put([(s.first, s.count, s.start) for s in self._prefills])
            else:
                tables, rows = made.tables, made.spans
            found = self._spans[tokens] = Spans(tables, rows, self._put(tiles_of(self._prefills, tokens)))
        return found

    def _put(self, values: Sequence[int] | Sequence[tuple[int, ...]]) -> torch.Tensor:
        """As int32 on the device."""
        return to_device(np.array(values, dtype=np.int32), self._device)


def tiles_of(prefills: list[PrefillSpan], tokens: int) -> list[tuple[int, ...]]:
    """(span, first of its tokens) of tiles of `tokens`, those with most keys first: the last to run should be short."""
    by_keys = chain.from_iterable(
        ((span.start + begin, i, begin) for begin in range(0, span.count, tokens)) for i, span in enumerate(prefills)
    )
    return [(i, begin) for _, i, begin in sorted(by_keys, reverse=True)]
