"""Weights and keys on the CPU in large pages, where Linux has some (`/sys/kernel/mm/transparent_hugepage/enabled`:
`madvise`, as it mostly is, or `always`): all are read at each step, and small pages take long to be looked up."""

from __future__ import annotations

import ctypes
import math
import mmap
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import nn

LEAST = 1 << 20
"""Bytes of a tensor that are worth it."""
_KINDS = (torch.bfloat16, torch.float16, torch.float32, torch.int8)  # not numbers that places are told by
_AHEAD = 4 << 20  # bytes of each tensor, two large pages
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, of Linux since 5.14
_ASKED = getattr(mmap, "MADV_HUGEPAGE", None)  # of Linux alone


def zeros(size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros on the CPU, of which a page takes memory and time once it is written to."""
    num_bytes = math.prod(size) * dtype.itemsize
    return _memory(num_bytes)[:num_bytes].view(dtype).view(size)


def move_to_large_pages(model: nn.Module) -> None:
    """Give the model's large weights on the CPU other memory, of zeros, before they are filled.

    Each its own, which goes when it goes; neighbours share large pages. Rows that lie apart do so there too. Weights
    that others are views of stay.
    """
    users = Counter(p.untyped_storage().data_ptr() for p in model.parameters())
    for weight in model.parameters():
        alone = users[weight.untyped_storage().data_ptr()] == 1
        if weight.device.type == "cpu" and weight.dtype in _KINDS and weight.nbytes >= LEAST and alone:
            elements = weight.untyped_storage().nbytes() // weight.itemsize
            weight.data = zeros((elements,), weight.dtype).as_strided(weight.shape, weight.stride())


class PagesAhead:
    """Has tensors [rows, ...] take memory a little before their rows are first written to, by a thread beside.

    A large page is filled with zeros when it is taken, and layers, which are written to alike, take theirs in one step.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = tensors
        self._row_bytes = [tensor[0].nbytes for tensor in tensors]
        self._rows, self._ahead = len(tensors[0]), max(2, _AHEAD // max(self._row_bytes))
        self._taken = 0  # rows

    def reach(self, row: int) -> None:
        """`row`, and those before it, are about to be written to."""
        first = self._taken
        if first < self._rows and row + self._ahead // 2 >= first:
            self._taken = min(self._rows, row + self._ahead)
            with suppress(RuntimeError):  # no thread can be started: pages come when they are written to
                threading.Thread(target=self._take, args=(first, self._taken), daemon=True).start()

    def _take(self, first: int, end: int) -> None:
        madvise = getattr(ctypes.CDLL(None), "madvise", None)
        for tensor, row_bytes in zip(self._tensors, self._row_bytes, strict=True):
            start = (tensor.data_ptr() + first * row_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
            size = tensor.data_ptr() + end * row_bytes - start
            if madvise is not None:  # a kernel that does not know it refuses, and pages come when they are written to
                madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _POPULATE_WRITE)


def _memory(num_bytes: int) -> torch.Tensor:
    """[num_bytes] uint8 of zeros, of one piece. Raises `RuntimeError` as torch does where there is not so much."""
    try:
        memory = mmap.mmap(-1, max(1, num_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise RuntimeError(f"can't allocate memory: {num_bytes} bytes: {error}") from error
    if _ASKED is not None:
        with suppress(OSError):  # a kernel without large pages has none to give
            memory.madvise(_ASKED)
    return torch.frombuffer(memory, dtype=torch.uint8)
