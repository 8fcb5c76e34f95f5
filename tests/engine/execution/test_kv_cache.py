"""Pages go to the host and come back with what they held."""

from __future__ import annotations

import torch

from quire_engine.core.step import Step
from quire_engine.execution.kv_cache import KVCache


def filled(num_blocks: int, *shape: int) -> torch.Tensor:
    """Pages that each hold their number."""
    return torch.arange(num_blocks, dtype=torch.float32).view(-1, *(1 for _ in shape)).expand(-1, *shape).clone()


def test_pages_come_back_from_the_host_into_other_blocks_in_every_tensor() -> None:
    tensors = [filled(8, 4, 2, 3), filled(8, 4, 5)]
    cache = KVCache(tensors, num_swap_blocks=5)
    cache.move(Step(swap_out=[(6, 1), (2, 2), (7, 4)]))
    for tensor in tensors:
        tensor.zero_()
    cache.move(Step(swap_in=[(4, 0), (1, 5), (2, 3)]))
    for tensor in tensors:
        assert tensor.flatten(1)[:, 0].tolist() == [7, 0, 0, 2, 0, 6, 0, 0]
        assert (tensor.flatten(1) == tensor.flatten(1)[:, :1]).all()


def test_a_block_that_just_came_back_can_be_copied() -> None:
    tensor = filled(5, 2)
    cache = KVCache([tensor], num_swap_blocks=1)
    cache.move(Step(swap_out=[(4, 0)]))
    cache.move(Step(swap_in=[(0, 1)], copies=[(1, 2), (1, 3)]))
    assert tensor[:, 0].tolist() == [0, 4, 4, 4, 4]


def test_a_block_is_read_before_the_page_of_another_sequence_comes_into_it() -> None:
    tensor = filled(4, 2)
    cache = KVCache([tensor], num_swap_blocks=2)
    cache.move(Step(swap_out=[(0, 0)]))
    cache.move(Step(swap_out=[(1, 1)], swap_in=[(0, 1)]))
    cache.move(Step(swap_in=[(1, 3)]))
    assert tensor[:, 0].tolist() == [0, 0, 2, 1]
