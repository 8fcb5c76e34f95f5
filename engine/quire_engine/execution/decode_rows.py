"""The sequences that decode in a step, which most often are those of the step before."""

from __future__ import annotations

import numpy as np
import torch

from quire_engine.core.step import ScheduledSequence
from quire_engine.kernels.transfer import to_device


class DecodeRows:
    """Sequences that decode, and what stays as it is for many steps of them.

    They are the first columns of `staging`: token ids, positions and slots, [3 or more, max_tokens] int64 on the host.
    A few integers are faster in lists than in arrays.
    """

    def __init__(
        self, request_ids: list[str], rows: list[int], block_size: int, staging: torch.Tensor, device: torch.device
    ) -> None:
        """`rows` are those of the arrays that persist."""
        self.request_ids, self.rows = request_ids, rows
        self._block_size, self._device = block_size, device
        self._of_rows = np.array(rows, dtype=np.int64)
        self.on_device = to_device(self._of_rows, device)  # `rows`
        self._staged = staging[:, : len(rows)]
        self._columns = self._staged.numpy()[:3]
        self._in_place = self._staged.unbind() if device.type == "cpu" else None
        self.ends = torch.zeros(len(rows), dtype=torch.int64)  # the lengths in the latest step, on the host
        self._ends = self.ends.numpy()
        self._blocks = [-1] * len(rows)  # of its sequence, the one that each writes to
        self._to_slots = [0] * len(rows)  # what makes a slot there of a position
        self.tables = torch.empty(0, 0, dtype=torch.int64)  # [decodes, blocks] on the device
        self._stale = True  # whether `tables` are

    def give_blocks(self) -> None:
        """Some of the sequences have other blocks than before."""
        self._stale = True

    def lay_out(self, sequences: list[ScheduledSequence], tables: np.ndarray) -> list[int]:
        """Stage the one token of each, in this order. `tables` are of all rows. Returns their lengths."""
        size, starts = self._block_size, [s.start for s in sequences]
        blocks = [start // size for start in starts]
        if self._stale or blocks != self._blocks:
            own = tables[self._of_rows, : max(blocks, default=-1) + 1]
            firsts = zip(own[np.arange(len(own)), blocks].tolist() if blocks else [], blocks, strict=True)
            self._to_slots = [(block - place) * size for block, place in firsts]
            self.tables, self._blocks, self._stale = to_device(own, self._device), blocks, False
        self._columns[0] = [s.token_ids[0] for s in sequences]
        self._columns[1] = starts
        self._columns[2] = [start + more for start, more in zip(starts, self._to_slots, strict=True)]
        lengths = [start + 1 for start in starts]
        self._ends[:] = lengths
        return lengths

    def staged(self) -> tuple[torch.Tensor, ...]:
        """The rows of `staging` on the device, as far as these sequences go."""
        return to_device(self._staged, self._device).unbind() if self._in_place is None else self._in_place
