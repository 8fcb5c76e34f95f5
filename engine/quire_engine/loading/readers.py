"""Parts of files into a model, by several threads: disks, networks and copies carry more than one of them asks for."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from quire_engine.layers.shard import Shard
from quire_engine.loading.file_tensor import FileTensor, Mapped, Reader
from quire_engine.loading.reading import fill
from quire_engine.loading.staging import Staging
from quire_engine.memory_plan.host_memory import cpu_limit
from quire_engine.memory_plan.safetensors_header import LENGTH_BYTES, TensorHeader, header_length
from quire_engine.models.naming import Source

log = logging.getLogger(__name__)

MOST_READERS = 8


def readers_for(device: torch.device, num_local: int) -> int:
    """How many threads read, for each of `num_local` ranks of this machine, which share its processors.

    On a CPU one does, as torch copies by several.
    """
    return max(1, min(MOST_READERS, int(cpu_limit()) // num_local)) if device.type == "cuda" else 1


def reader_for(device: torch.device) -> Reader:
    """Through what each of them reads."""
    return Staging(device) if device.type == "cuda" else Mapped()


@dataclass(frozen=True)
class Read:
    """A tensor of a file, and the places that its parts go to."""

    file: Path
    name: str
    header: TensorHeader
    shape: tuple[int, ...]  # as it is read
    parts: Sequence[tuple[Source, Shard]]


def read_all(reads: Sequence[Read], device: torch.device, readers: int) -> None:
    """Fill all places, which are on `device`. Raises `ValueError`, which names the file and the tensor."""
    begun = time.monotonic()
    if readers == 1:  # one file at a time: a mapped one may count as memory that is promised
        by_file = groupby(sorted(reads, key=lambda read: read.file), key=lambda read: read.file)
        sizes = [_read_side_by_side(list(group), device, 1) for _, group in by_file]
    else:
        sizes = [_read_side_by_side(reads, device, readers)]
    if device.type == "cuda":
        torch.cuda.empty_cache()
        give_back = getattr(torch.accelerator, "empty_host_cache", None)  # torch 2.6 has none yet
        if give_back is not None:
            give_back()
    size, seconds = sum(sizes) / 1e9, time.monotonic() - begun
    threads = "one thread" if readers == 1 else f"{readers} threads"
    log.info("read %.2f GB at %.2f GB/s, by %s", size, size / seconds, threads)


def _read_side_by_side(reads: Sequence[Read], device: torch.device, readers: int) -> int:
    """All files are open meanwhile. Returns how many bytes were read."""
    with ExitStack() as opened:
        files = {file: _open(file, opened) for file in dict.fromkeys(read.file for read in reads)}
        left = deque(reads)
        if readers == 1:
            return _read(left, files, device)
        with ThreadPoolExecutor(readers, "reader") as pool:
            tasks = [pool.submit(_read, left, files, device) for _ in range(readers)]
            try:
                wait(tasks)
            finally:
                left.clear()
        return sum(task.result() for task in tasks)


@dataclass(frozen=True)
class _File:
    descriptor: int
    start: int  # of the tensors
    opened: Any


def _open(file: Path, opened: ExitStack) -> _File:
    try:
        # which looks whether tensors and their places agree
        tensors = opened.enter_context(safe_open(file, framework="pt"))
        descriptor = os.open(file, os.O_RDONLY)
        opened.callback(os.close, descriptor)
        return _File(descriptor, LENGTH_BYTES + header_length(os.pread(descriptor, LENGTH_BYTES, 0)), tensors)
    except (ValueError, SafetensorError, OSError) as error:
        raise ValueError(f"{file}: {error}") from error


def _read(left: deque[Read], files: Mapping[Path, _File], device: torch.device) -> int:
    """Take reads until none is left. Returns how many bytes were read."""
    reader = reader_for(device)
    try:
        with torch.no_grad(), reader.in_its_place():
            while left:
                try:
                    read = left.popleft()
                except IndexError:  # another thread was faster
                    break
                file = files[read.file]
                stored = FileTensor(
                    read.name,
                    file.descriptor,
                    file.start + read.header.start,
                    read.header.dtype,
                    read.shape,
                    file.opened,
                )
                try:
                    fill(read.parts, stored, reader)
                except (ValueError, SafetensorError) as error:
                    raise ValueError(f"{read.file}: {error}") from error
            reader.finish()
    except BaseException:
        left.clear()  # nobody needs the rest
        raise
    return reader.num_bytes
