"""One layer's attention over latent vectors by the kernels for GPUs. To import it imports Triton."""

from __future__ import annotations

from dataclasses import replace

import torch

from quire_engine.attention.context import AttentionContext
from quire_engine.attention.kernel_attention import BatchOnDevice
from quire_engine.kernels.gpu.latent import attend_chunks, attend_decodes, tokens_of_tile


class KernelLatentAttention:
    """Decodes are split along their length; the parts of prompts that look back at cached tokens are one launch.

    Queries [n, num_heads, rank + rope] are in the latent space, and so is what they attend to, [n, num_heads, rank].
    """

    def __init__(self, cache: torch.Tensor, num_heads: int, rank: int, scale: float) -> None:
        self._cache, self._rank, self._scale = cache, rank, scale
        self._tokens = tokens_of_tile(num_heads, cache.dtype)

    def decodes(self, queries: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """For the rows of decoding sequences."""
        out = queries.new_empty(*queries.shape[:2], self._rank)
        lengths = _batch_of(context).lengths
        attend_decodes(queries, self._cache, out, context.decode_blocks, lengths, self._scale)
        return out

    def chunks(self, queries: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """For the rows from the first part of a prompt that looks back to the last.

        What is between them and does not look back gets anything.
        """
        out = queries.new_empty(*queries.shape[:2], self._rank)
        attend_chunks(queries, self._cache, out, _batch_of(context).spans(self._tokens), self._scale)
        return out


def _batch_of(context: AttentionContext) -> BatchOnDevice:
    """With the parts of prompts that look back, their rows counted from the first of theirs."""
    batch = context.on_device
    if batch is None:
        spans = [span for span in context.prefills if span.start]
        spans = [replace(span, first=span.first - spans[0].first) for span in spans]
        batch = context.on_device = BatchOnDevice(context, spans)
    return batch
