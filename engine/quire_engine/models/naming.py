"""What a checkpoint calls the tensors of a model. Here they have Llama's names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Source:
    """Where in a checkpoint a tensor [rows, columns] of the model is found."""

    name: str
    rows: torch.Tensor | None = None  # [rows] int64: which of the stored rows, where several tensors are stored as one
    transposed: bool = False  # stored as [columns, rows]; `rows` are counted after turning it


@dataclass(frozen=True)
class Naming:
    """A family's names: `source` of each of the model's tensors, and endings of those that nobody needs."""

    source: Callable[[str], Source] = Source
    unused: tuple[str, ...] = ("rotary_emb.inv_freq",)
    unused_zeros: tuple[str, ...] = ()  # endings of those that nobody needs as long as all their elements are 0


LLAMA_NAMES = Naming()
