"""Which layers and which part of each this process holds, and how the parts are put together.

Layers ask `tensor_ranks()` when they are built and keep the answer, so that models need not hand it down. Decoders
ask `pipeline_stage()`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from quire_engine.distributed.one_shot import OneShot
from quire_engine.memory_plan.stages import Stage


@dataclass(frozen=True)
class TensorRanks:
    """The processes that share each layer. `group` is None where there is one of them."""

    rank: int = 0
    size: int = 1
    group: distributed.ProcessGroup | None = None
    expert_parallel: bool = False  # experts are held whole, each by one rank, instead of in part by all
    one_shot: OneShot | None = None  # adds what is small

    def share(self, count: int) -> slice:
        """The units, of `count`, that this rank holds: an equal part, or one that several ranks hold alike.

        Raises `ValueError` when neither divides the other.
        """
        if count % self.size == 0:
            each = count // self.size
            return slice(self.rank * each, (self.rank + 1) * each)
        if self.size % count == 0:
            unit = self.rank * count // self.size
            return slice(unit, unit + 1)
        raise ValueError(f"--tensor-parallel-size is {self.size}: it does not go with {count} heads or columns")

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' `x`, which may be written to."""
        if self.one_shot is not None and self.one_shot.takes(x):
            self.one_shot.add(x)
        elif self.size > 1:
            distributed.all_reduce(x, group=self.group)
        return x

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """All ranks' `x` [..., n], side by side: [..., size * n]."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        distributed.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)


_current = TensorRanks()
_stage = Stage()


def tensor_ranks() -> TensorRanks:
    """The ranks that layers are built for: one alone, outside of `build_for`."""
    return _current


def pipeline_stage() -> Stage:
    """The stage that a decoder is built for: the only one, outside of `build_for`."""
    return _stage


@contextmanager
def build_for(ranks: TensorRanks, stage: Stage | None = None) -> Iterator[None]:
    """Have the layers that are built inside hold their part only, and decoders the layers of `stage`."""
    global _current, _stage
    before = _current, _stage
    _current, _stage = ranks, stage or _stage
    try:
        yield
    finally:
        _current, _stage = before
