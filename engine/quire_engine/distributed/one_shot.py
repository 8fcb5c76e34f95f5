"""Sums of small tensors over the GPUs of one machine, in one step: each reads what all the others have written.

NCCL takes several steps, each of which waits for a neighbour, which costs more than the bytes do while these are few.
The kernel is torch's, on memory that all GPUs of the group have mapped (`torch.distributed._symmetric_memory`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed

log = logging.getLogger(__name__)

MOST_BYTES = {2: 1 << 20, 4: 512 << 10, 8: 256 << 10}
"""By the number of ranks: up to so many bytes one step is faster, as each rank reads all others' tensors whole.

For other numbers torch's kernel adds in an order that differs from rank to rank, and with it the last bits.
"""

DTYPES = (torch.bfloat16, torch.float32)
"""What torch's kernel adds."""

_NOT_THERE = (RuntimeError, ImportError, AttributeError, TypeError)  # torch calls all of this an alpha
_ALIGNMENT = 16
_TRIED = (_ALIGNMENT, 4096 + _ALIGNMENT)  # bytes, beside the most that are taken

Add = Callable[[torch.Tensor], None]
"""Makes of a tensor the sum of all ranks', in place. All have to call it."""


def takes(x: torch.Tensor, most_bytes: int) -> bool:
    """Whether a tensor is small enough, and as the kernel has it."""
    return (
        0 < x.nbytes <= most_bytes
        and x.dtype in DTYPES
        and x.is_contiguous()
        and x.nbytes % _ALIGNMENT == x.data_ptr() % _ALIGNMENT == 0
    )


def why_not(size: int, *, wanted: bool, one_node: bool, linked: bool) -> str | None:
    """Why `size` GPUs add by NCCL alone; None where nothing speaks against one step."""
    if not wanted:
        return "--disable-custom-all-reduce is set"
    if size not in MOST_BYTES:
        return f"there are {size} ranks in a stage, and one step is for {', '.join(map(str, MOST_BYTES))}"
    if not one_node:
        return "the ranks of a stage are on several nodes"
    if not linked:
        return "NVLink does not join all of its GPUs"
    return None


def is_right(add: Add, group: distributed.ProcessGroup, device: torch.device, most_bytes: int) -> bool:
    """Whether `add` gives the sums that the group's own all-reduce gives, on every rank to the last bit the same.

    Small whole numbers have one sum in any order; of others only that all ranks have the same is asked. All ranks have
    to call it, and get the same answer.
    """
    generator = torch.Generator().manual_seed(group.rank())
    fine = True
    for dtype in DTYPES:
        for num_bytes in (*_TRIED, most_bytes):
            count = num_bytes // dtype.itemsize
            whole = torch.randint(-8, 9, (count,), generator=generator).to(device, dtype)
            wanted = whole.clone()
            distributed.all_reduce(wanted, group=group)
            add(whole)
            any_numbers = torch.randn(count, generator=generator).to(device, dtype)
            add(any_numbers)
            least, most = any_numbers.clone(), any_numbers.clone()
            distributed.all_reduce(least, distributed.ReduceOp.MIN, group=group)
            distributed.all_reduce(most, distributed.ReduceOp.MAX, group=group)
            fine = fine and torch.equal(whole, wanted) and torch.equal(least, most)
    return agreed(fine, group)


def agreed(fine: bool, group: distributed.ProcessGroup) -> bool:
    """Whether it is so on all ranks."""
    verdict = torch.tensor(int(fine))
    distributed.all_reduce(verdict, distributed.ReduceOp.MIN, group=group)
    return bool(verdict)


class OneShot:
    """A buffer that all ranks of `group` have mapped. All have to make it at once. Raises whatever torch does."""

    def __init__(self, group: distributed.ProcessGroup, device: torch.device) -> None:
        from torch.distributed import _symmetric_memory

        self.most_bytes = MOST_BYTES[group.size()]
        self._name = group.group_name
        self._buffers = {}
        self._handles: list[Any] = []  # which keep the others' memory mapped
        for dtype in DTYPES:
            self._buffers[dtype] = _symmetric_memory.empty(
                self.most_bytes // dtype.itemsize, dtype=dtype, device=device
            )
            self._handles.append(_symmetric_memory.rendezvous(self._buffers[dtype], group))

    def takes(self, x: torch.Tensor) -> bool:
        return takes(x, self.most_bytes)

    def add(self, x: torch.Tensor) -> None:
        """An `Add`, of what `takes` lets pass. On the current stream, and a CUDA graph may hold it."""
        buffer = self._buffers[x.dtype][: math.prod(x.shape)].view(x.shape)
        # Each thread of the kernel reads of `x` what it writes to it later.
        torch.ops.symm_mem.one_shot_all_reduce_copy_out(buffer, x, "sum", self._name, x)


def one_shot_for(
    group: distributed.ProcessGroup | None, device: torch.device, peers: range, *, wanted: bool, one_node: bool
) -> OneShot | None:
    """What adds small tensors of a group of GPUs; None where NCCL has to, and the log says why.

    `peers` are the numbers of these GPUs on their node. All ranks have to call it, and get the same.
    """
    if group is None or group.size() == 1 or device.type != "cuda":
        return None
    reason = why_not(group.size(), wanted=wanted, one_node=one_node, linked=one_node and _are_linked(peers))
    found = None
    if agreed(reason is None, group):
        try:
            found = OneShot(group, device)
        except _NOT_THERE as error:
            reason = str(error).partition("\n")[0]
        if agreed(found is not None, group) and found is not None:
            # Where the GPUs' flags do not reach each other nobody would hear of it.
            log.info("trying sums over %d GPUs in one step (--disable-custom-all-reduce: without)", group.size())
            try:
                right = is_right(found.add, group, device, found.most_bytes)
            except _NOT_THERE as error:  # of all ranks at once
                right, reason = False, str(error).partition("\n")[0]
            if right:
                log.info("sums of up to %d KiB over %d GPUs take one step", found.most_bytes >> 10, group.size())
                return found
            reason = reason or "its sums are not NCCL's"
    log.info("all sums over GPUs are NCCL's: %s", reason or "another rank cannot do otherwise")
    return None


def _are_linked(gpus: range) -> bool:
    """Whether NVLink joins each GPU with each: the kernel swaps flags in memory of others, which PCIe may not do."""
    try:
        from torch._C._autograd import DeviceType
        from torch._C._distributed_c10d import _detect_dma_connectivity  # type: ignore[attr-defined]  # has no stub

        links = _detect_dma_connectivity(DeviceType.CUDA, "nvlink").matrix
    except _NOT_THERE:
        return False
    return all(links[a][b] for a in gpus for b in gpus if a != b)
