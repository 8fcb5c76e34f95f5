"""What a start spends on kernels for GPUs: Triton compiles those that it does not find in its cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from quire_engine.kernels.choice import by_gpu_kernels

if TYPE_CHECKING:
    from triton.knobs import CompileTimes


@dataclass
class Compiling:
    """Counts kernels. Triton calls it for each, once a process."""

    cache: str
    compiled: int = 0
    seconds: float = 0.0  # for those
    found: int = 0  # in the cache

    def __call__(
        self,
        *,
        src: Any,
        metadata: dict[str, Any],
        metadata_group: dict[str, str],
        times: CompileTimes,
        cache_hit: bool,
    ) -> None:
        if cache_hit:
            self.found += 1
        else:
            self.compiled += 1
            self.seconds += times.total / 1e6

    def __str__(self) -> str:
        return f"{self.compiled} compiled in {self.seconds:.1f} s, {self.found} found in {self.cache}"


def watch_compiling(device: torch.device) -> Compiling | None:
    """Count from now on; None where Triton does not compile for `device`."""
    if device.type != "cuda" or not by_gpu_kernels(device):
        return None
    return listen()


def listen() -> Compiling | None:
    """The same for any device; None where Triton is too old to tell."""
    try:
        from triton import knobs
    except ImportError:
        return None
    counted = Compiling(knobs.cache.dir)
    knobs.compilation.listener = counted
    return counted
