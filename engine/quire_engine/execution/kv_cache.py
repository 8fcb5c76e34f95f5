"""The memory of the KV cache."""

from __future__ import annotations

import math

import numpy as np
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
        cache = _zeros(size, dtype, device)
        layer.bind(cache[0], cache[1], GATHERED_TOKENS)
        caches.append(cache)
    return caches


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    # numpy asks the kernel for zeroed pages, which it hands out when they are first written: torch would write
    # them all now, which takes seconds and holds memory that a small load never needs.
    return torch.from_numpy(np.zeros(math.prod(size) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(size)
