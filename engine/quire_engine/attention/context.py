"""What attention has to know of the batch beside queries, keys and values.

It travels beside a model's forward, so that models take token ids and positions and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from quire_engine.attention.decode_groups import DecodeGroup

if TYPE_CHECKING:
    from quire_engine.attention.kernel_attention import BatchOnDevice
    from quire_engine.kernels.cpu_layers import Logits


@dataclass(frozen=True, slots=True)
class PrefillSpan:
    """Several tokens of one sequence: rows `first` .. `first + count` of the batch, from position `start` on."""

    first: int
    count: int
    start: int
    blocks: torch.Tensor  # [num_blocks] int64, up to the span's last token

    def length_on_host(self) -> torch.Tensor:
        """[1] int64: its sequence's tokens up to its last one."""
        return torch.tensor([self.start + self.count])


@dataclass(slots=True)
class AttentionContext:
    """The batch: first one row for each decoding sequence, then the spans of prompts."""

    slots: torch.Tensor  # [num_tokens] int64: block * block_size + offset, where each token's K and V go
    num_decodes: int
    decode_lengths: list[int]  # tokens of each decoding sequence, this one included
    decode_blocks: torch.Tensor  # [num_decodes, max_blocks] int64
    prefills: list[PrefillSpan]
    lengths: torch.Tensor | None = None  # [num_tokens] int64: what each is rotated for; of `RotationByLength` alone
    axes: torch.Tensor | None = None  # [3, num_tokens] int64: time, height and width; None where all are the position
    adapted: torch.Tensor | None = None  # [n] int64: rows that an adapter changes; None where it changes none
    ends: torch.Tensor | None = None  # decode_lengths as [num_decodes] int64 on the CPU, filled on demand
    adapters: tuple[tuple[int, torch.Tensor], ...] = ()  # by number, [n] int64: the rows of requests that chose it
    groups: dict[int | None, list[DecodeGroup]] = field(default_factory=dict)  # by sliding window, filled on demand
    wanted: torch.Tensor | None = None  # [n] int64: different rows, all that is read in the end; None for all
    asks_logits: bool = False  # whether these are the rows whose logits are read, in this order
    logits: Logits | None = None  # if the model made them with its layers: all of them until the next step
    lengths_on_device: torch.Tensor | None = None  # decode_lengths as [num_decodes] int32, where they are there alone
    on_device: BatchOnDevice | None = None  # for kernels, made on demand

    def ends_on_host(self) -> torch.Tensor:
        if self.ends is None:
            self.ends = torch.tensor(self.decode_lengths)
        return self.ends


_current: AttentionContext | None = None


@contextmanager
def attention_context(context: AttentionContext) -> Iterator[None]:
    """Make `context` the one that attention layers see. One model runs at a time in a process."""
    global _current
    _current = context
    try:
        yield
    finally:
        _current = None


def current_context() -> AttentionContext:
    """Raises `RuntimeError` outside of `attention_context`."""
    if _current is None:
        raise RuntimeError("a model's forward has to run inside attention_context()")
    return _current
