"""Which of the kernels of our own do the work of a device, and not torch."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch

interpreted_on_cpu = False
"""For tests: use the kernels on the CPU too. TRITON_INTERPRET=1 has to be set before Triton is imported."""

SHARED_MEMORY = 227 * 1024
"""Bytes that a block may take on the GPUs that tiles are cut for: Hopper, and Blackwell's for data centres."""


def are_wanted() -> bool:
    """Whether there is to be any kernel of our own: not with QUIRE_KERNELS=off."""
    return os.environ.get("QUIRE_KERNELS", "").lower() not in ("off", "0", "false")


def by_gpu_kernels(device: torch.device) -> bool:
    """Whether Triton's kernels run on `device`: a GPU with room for their tiles, and Triton is installed.

    Imports nothing.
    """
    if device.type != "cuda":
        return interpreted_on_cpu
    return has_triton() and has_room(device.index)


@cache
def has_triton() -> bool:
    return are_wanted() and find_spec("triton") is not None


def has_room(index: int | None) -> bool:
    """Of a GPU; None for the current one."""
    return shared_memory(index) >= SHARED_MEMORY


@cache
def shared_memory(index: int | None) -> int:
    """Bytes that a block may take, on a GPU; None for the current one."""
    found = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    return int(getattr(found, "shared_memory_per_block_optin", 0))
