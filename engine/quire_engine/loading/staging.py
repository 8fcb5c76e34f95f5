"""Tensors of files into a model, in large pieces: one is copied to the device while the next is read."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import product

import torch

from quire_engine.loading.file_tensor import FileTensor

BUFFER_BYTES = 8 << 20
"""What is read at once. On a GPU a reader has two buffers of so many bytes, pinned."""


class Staging:
    """What one reader, a thread of its own, reads files through. On a GPU it copies on a stream of its own."""

    def __init__(self, device: torch.device, num_bytes: int = BUFFER_BYTES) -> None:
        self.device = device
        on_gpu = device.type == "cuda"
        self._size = num_bytes
        if on_gpu:  # threads begin with the first GPU, where pinning would take memory too
            torch.cuda.set_device(device)
        # torch leaves streams untyped
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._buffers = [torch.empty(num_bytes, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(1 + on_gpu)]
        self._views = [buffer.numpy().data for buffer in self._buffers]
        # and events
        self._copied = [torch.cuda.Event() for _ in self._buffers] if on_gpu else []  # type: ignore[no-untyped-call]
        self._turn = 0
        self.num_bytes = 0  # that were read
        if self._stream is not None:  # what the model's tensors were made with
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def read(self, stored: FileTensor, where: Sequence[slice], into: torch.Tensor) -> None:
        """As `Reader` says. Of a part of the columns whole rows are read."""
        if not into.numel():
            return
        if not stored.shape:
            stored, into = replace(stored, shape=(1,)), into.view(1)
        spans = stored.spans(where)
        split = 0  # the dimension whose rows are read together, of each of the indices before it
        while split + 1 < len(spans) and (len(spans[split]) == 1 or stored.row_bytes(split) > self._size):
            split += 1
        columns = tuple(slice(span.start, span.stop) for span in spans[split + 1 :])
        for outer in product(*spans[:split]):
            start = sum(index * stored.row_bytes(d) for d, index in enumerate((*outer, spans[split].start)))
            part = into[tuple(index - span.start for index, span in zip(outer, spans, strict=False))]
            self._read_rows(stored, start, stored.shape[split + 1 :], columns, part)

    def get(self, stored: FileTensor, where: Sequence[slice]) -> torch.Tensor:
        part = torch.empty(stored.shape_of(where), dtype=stored.dtype, device=self.device)
        self.read(stored, where, part)
        return part

    def finish(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def in_its_place(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _read_rows(
        self, stored: FileTensor, start: int, row: tuple[int, ...], columns: tuple[slice, ...], into: torch.Tensor
    ) -> None:
        """Rows that lie behind each other from `start` on, of the shape `row` each: their `columns` into `into`."""
        row_bytes = math.prod(row) * stored.dtype.itemsize
        at_once = self._size // row_bytes
        for first in range(0, len(into), at_once):
            rows = into[first : first + at_once]
            size = len(rows) * row_bytes
            turn = self._turn = (self._turn + 1) % len(self._buffers)
            self.num_bytes += size
            if self._copied:
                self._copied[turn].synchronize()
            _read_fully(stored, self._views[turn][:size], stored.start + start + first * row_bytes)
            staged = self._buffers[turn][:size].to(self.device, non_blocking=True)
            if self._copied:
                self._copied[turn].record()
            rows.copy_(staged.view(stored.dtype).view(len(rows), *row)[(slice(None), *columns)])


def _read_fully(stored: FileTensor, buffer: memoryview, start: int) -> None:
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(stored.descriptor, [buffer[done:]], start + done)
        except OSError as error:
            raise ValueError(f"{stored.name} cannot be read at byte {start + done}: {error.strerror}") from error
        if not count:
            raise ValueError(f"{stored.name} is cut off at byte {start + done}: the file changed while it was read")
        done += count
