"""Decoding sequences gathered into groups of similar length, so that padding stays under half of the work."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Sequences that attend together, padded to the longest."""

    rows: torch.Tensor  # [group] int64: rows of the batch
    blocks: torch.Tensor  # [group * padded_blocks] int64
    mask: torch.Tensor  # [group, 1, 1, padded_blocks * block_size] bool: true where a key is visible
    positions: torch.Tensor | None  # [group, 1, 1, padded_blocks * block_size] int64: of the keys, where asked for


def group_decodes(
    lengths: list[int],
    tables: torch.Tensor,
    block_size: int,
    window: int | None,
    max_tokens: int,
    *,
    with_positions: bool = False,
) -> list[DecodeGroup]:
    """Split sequences of `lengths` tokens, with block `tables` [num_seqs, max_blocks], into groups.

    A group's members are at least half as long as its longest, and their padded lengths sum to at most
    `max_tokens`, unless it has one member. With a sliding `window` only the blocks that it touches count.
    """
    ends = torch.tensor(lengths)
    starts = (ends - window).clamp_min(0) if window is not None else torch.zeros_like(ends)
    first_blocks = starts // block_size
    spans = (ends + block_size - 1) // block_size - first_blocks
    order = torch.argsort(spans, descending=True)
    sizes = spans[order].tolist()

    groups, begin = [], 0
    while begin < len(sizes):
        widest, end = sizes[begin], begin + 1
        while end < len(sizes) and 2 * sizes[end] >= widest and (end + 1 - begin) * widest * block_size <= max_tokens:
            end += 1
        rows = order[begin:end]
        columns = first_blocks[rows, None] + torch.arange(widest)
        positions = (columns * block_size)[:, :, None] + torch.arange(block_size)
        positions = positions.flatten(1)
        mask = (positions < ends[rows, None]) & (positions >= starts[rows, None])
        device_rows = rows.to(tables.device)
        # Columns past a short sequence's last block are masked. Another's block could hold NaN, which no mask hides.
        columns = torch.minimum(columns, (ends[rows, None] - 1) // block_size).to(tables.device)
        blocks = tables[device_rows[:, None], columns]
        visible = mask[:, None, None, :].to(tables.device)
        of_keys = positions[:, None, None, :].to(tables.device) if with_positions else None
        groups.append(DecodeGroup(device_rows, blocks.flatten(), visible, of_keys))
        begin = end
    return groups
