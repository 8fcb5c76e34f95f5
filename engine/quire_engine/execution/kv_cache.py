"""The memory of the KV cache, on the device and, for preempted requests, on the host."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from quire_engine.core.step import Step
from quire_engine.kernels.large_pages import PagesAhead, zeros
from quire_engine.kernels.transfer import to_device
from quire_engine.memory_plan.plan import GATHERED_TOKENS
from quire_engine.models.language_model import LanguageModel


class KVCache:
    """The pages of all layers on the device, and their counterparts on the host.

    `tensors` are each layer's, [num_blocks, ...]; those on the host have `num_swap_blocks` pages instead.
    """

    def __init__(self, tensors: list[torch.Tensor], num_swap_blocks: int) -> None:
        self._device = tensors
        self._ahead = PagesAhead(tensors) if tensors and tensors[0].device.type == "cpu" else None
        self._host = [_host_pages((num_swap_blocks, *t.shape[1:]), t) for t in tensors] if num_swap_blocks else []

    def move(self, step: Step) -> None:
        """Carry out the step's copies. The step must not have begun to write."""
        if not self._device:
            return  # the model keeps what it needs by itself
        if self._ahead is not None:
            self._ahead.reach(max((b for s in step.scheduled for b in s.new_block_ids), default=0))
        if step.swap_out:
            blocks, pages = _columns(step.swap_out)
            from_blocks = self._index(blocks)
            for device, host in zip(self._device, self._host, strict=True):
                _store(device, from_blocks, host, pages)
        if step.cleared:
            cleared = self._index(step.cleared)
            for device in self._device:
                device.index_fill_(0, cleared, 0.0)
        if step.swap_in:
            pages, blocks = _columns(step.swap_in)
            to_blocks = self._index(blocks)
            for device, host in zip(self._device, self._host, strict=True):
                _load(host, pages, device, to_blocks)
        if step.copies:
            sources, copies = (self._index(column) for column in _columns(step.copies))
            for device in self._device:
                device.index_copy_(0, copies, device.index_select(0, sources))

    def _index(self, blocks: list[int]) -> torch.Tensor:
        return to_device(np.array(blocks, dtype=np.int64), self._device[0].device)


def allocate_kv_cache(
    model: LanguageModel,
    *,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    num_swap_blocks: int = 0,
) -> KVCache:
    """Allocate and bind each layer's cache as zeros, keys and values [num_blocks, block_size, num_kv_heads, head_dim].

    Host pages are pinned where the device is a GPU.
    """
    tensors: list[torch.Tensor] = []
    for layer in model.attention_layers():
        size = (layer.num_cached, num_blocks, block_size, layer.num_kv_heads, layer.head_dim)
        cache = _zeros(size, dtype, device)
        layer.bind(cache[0], cache[-1], GATHERED_TOKENS)
        tensors += cache
    return KVCache(tensors, num_swap_blocks)


def _columns(pairs: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [first for first, _ in pairs], [second for _, second in pairs]


def _store(device: torch.Tensor, blocks: torch.Tensor, host: torch.Tensor, pages: list[int]) -> None:
    """Copy blocks to host pages, gathered on the device first and then a run of neighbouring pages at a time."""
    gathered = device.index_select(0, blocks)
    for at, first, count in _runs(pages):
        host[first : first + count].copy_(gathered[at : at + count], non_blocking=True)


def _load(host: torch.Tensor, pages: list[int], device: torch.Tensor, blocks: torch.Tensor) -> None:
    """Copy host pages to blocks. In order with the copies to the host, which went down the same stream."""
    gathered = torch.empty((len(pages), *device.shape[1:]), dtype=device.dtype, device=device.device)
    for at, first, count in _runs(pages):
        gathered[at : at + count].copy_(host[first : first + count], non_blocking=True)
    device.index_copy_(0, blocks, gathered)


def _runs(pages: list[int]) -> Iterator[tuple[int, int, int]]:
    """Neighbouring pages that come one after the other: (index of the first, the first, how many)."""
    at = 0
    for i in range(1, len(pages) + 1):
        if i == len(pages) or pages[i] != pages[i - 1] + 1:
            yield at, pages[at], i - at
            at = i


def _host_pages(size: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    if like.device.type == "cpu":
        return _zeros(size, like.dtype, like.device)
    return torch.empty(size, dtype=like.dtype, pin_memory=True)


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    # Pages come when they are first written to: torch would write them all now, which takes seconds and holds memory
    # that a small load never needs.
    return zeros(size, dtype)
