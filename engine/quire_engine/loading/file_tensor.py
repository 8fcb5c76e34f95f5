"""A tensor that lies in a file, and the ways to read parts of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I32": torch.int32,
    "U32": torch.int32,  # the same bits, and words of packed weights are nothing else
}


@dataclass(frozen=True)
class FileTensor:
    """Where a file that is open holds a tensor: row-major, from the byte `start` on."""

    name: str
    descriptor: int
    start: int
    stored_as: str  # as safetensors writes it: F32, BF16, I32, F8_E4M3, ...
    shape: tuple[int, ...]  # but for dimensions of size 1
    opened: Any = None  # the file as safetensors has opened it

    @property
    def dtype(self) -> torch.dtype:
        return _DTYPES[self.stored_as]

    def spans(self, where: Sequence[slice]) -> list[range]:
        """The indices of each dimension, where `where` has slices of the first ones."""
        spans = [range(*part.indices(size)) for part, size in zip(where, self.shape, strict=False)]
        return spans + [range(size) for size in self.shape[len(spans) :]]

    def shape_of(self, where: Sequence[slice]) -> tuple[int, ...]:
        """The shape of such a part."""
        return tuple(map(len, self.spans(where)))

    def row_bytes(self, dimension: int) -> int:
        """Bytes from one index of a dimension to the next."""
        return math.prod(self.shape[dimension + 1 :]) * self.dtype.itemsize


class Reader(Protocol):
    """Reads, on one thread."""

    num_bytes: int
    """That were read."""

    def read(self, stored: FileTensor, where: Sequence[slice], into: torch.Tensor) -> None:
        """Fill `into` from the part of `stored` that has a slice of each of its first dimensions, and all of the rest.

        `into` has that part's shape, and any type and strides. Raises `ValueError` for a file that ends before it
        should, or cannot be read.
        """
        ...

    def get(self, stored: FileTensor, where: Sequence[slice]) -> torch.Tensor:
        """Such a part by itself, valid until the file is closed."""
        ...

    def finish(self) -> None:
        """Wait until all that was read is where it belongs."""
        ...

    def in_its_place(self) -> AbstractContextManager[object]:
        """In which all of it has to be used."""
        ...


class Mapped:
    """Reads what the kernel has mapped into memory: on a CPU the fewest copies."""

    def __init__(self) -> None:
        self.num_bytes = 0

    def read(self, stored: FileTensor, where: Sequence[slice], into: torch.Tensor) -> None:
        into.copy_(self.get(stored, where))

    def get(self, stored: FileTensor, where: Sequence[slice]) -> torch.Tensor:
        found = stored.opened.get_slice(stored.name)
        if tuple(found.get_shape()) != stored.shape:
            found = found[...].reshape(stored.shape)
        part: torch.Tensor = found[tuple(where)]
        self.num_bytes += part.nbytes
        return part

    def finish(self) -> None:
        """Nothing is under way."""

    def in_its_place(self) -> AbstractContextManager[object]:
        return nullcontext()
