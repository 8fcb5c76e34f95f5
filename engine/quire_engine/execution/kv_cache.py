"""The memory of the KV cache."""

from __future__ import annotations

import torch

from quire_engine.memory_plan.plan import GATHERED_TOKENS
from quire_engine.models.decoder import CausalLM


def allocate_kv_cache(
    model: CausalLM, *, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    """Allocate and bind each layer's cache, [2, num_blocks, block_size, num_kv_heads, head_dim], as zeros."""
    shape = model.spec.shape
    size = (2, num_blocks, block_size, shape.num_kv_heads, shape.head_dim)
    caches = []
    for layer in model.attention_layers():
        cache = torch.zeros(size, dtype=dtype, device=device)
        layer.bind(cache[0], cache[1], GATHERED_TOKENS)
        caches.append(cache)
    return caches
