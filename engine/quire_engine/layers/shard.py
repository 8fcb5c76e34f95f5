"""Where the tensors of a checkpoint go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch


@dataclass(frozen=True)
class Shard:
    """A place in a model, and the part of a checkpoint's tensor that belongs there."""

    target: torch.Tensor
    whole: tuple[int, ...]  # shape of the checkpoint's tensor
    rows: slice = field(default_factory=lambda: slice(None))  # along the tensor's first dimension
    columns: slice = field(default_factory=lambda: slice(None))  # along its second, where it has one


@runtime_checkable
class Sharded(Protocol):
    """A module whose parameters are not the checkpoint's tensors one by one."""

    def shards(self, path: str) -> dict[str, Shard]:
        """By the checkpoint's names, for the module at `path`. A sharded module has no submodules with parameters."""
        ...
