"""Where the tensors of a checkpoint go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch


@dataclass(frozen=True)
class Packed:
    """How one of the tensors that make up a quantized weight [rows, columns] lies to the weight.

    Dimensions of size 1 may be left out of it, or added.
    """

    rows_each: int | None  # the weight's rows that each row of the tensor stands for; None: it is the same for all
    turned: bool = False  # stored as [columns, rows]
    optional: bool = False  # the target keeps what it has where the checkpoint lacks it


@dataclass(frozen=True)
class Shard:
    """A place in a model, and the part of a checkpoint's tensor that belongs there."""

    target: torch.Tensor
    whole: tuple[int, ...]  # shape of the checkpoint's tensor, as [rows, columns] where it is stored turned
    rows: slice = field(default_factory=lambda: slice(None))  # along the tensor's first dimension
    columns: slice = field(default_factory=lambda: slice(None))  # along its second, where it has one
    packed: Packed | None = None  # for a part of a quantized weight

    @property
    def dtype(self) -> torch.dtype:
        """What is filled in: floats of any size for a type of floats, and exactly the type otherwise."""
        return self.target.dtype

    @property
    def place(self) -> torch.Tensor | None:
        """Where what is read can be written piece by piece; None where `fill` has to see all of it."""
        return self.target

    def fill(self, part: torch.Tensor) -> None:
        """Take in what was read. Raises `ValueError` that says what is wrong with it, for behind the tensor's name."""
        self.target.copy_(part)


@runtime_checkable
class Sharded(Protocol):
    """A module whose parameters are not the checkpoint's tensors one by one."""

    def shards(self, path: str) -> dict[str, Shard]:
        """By the checkpoint's names, for the module at `path`. A sharded module has no submodules with parameters."""
        ...
