"""Steps of decodes alone, padded to one of a few sizes, in buffers that stay where they are.

A step of which nothing but the contents of its tensors changes can be recorded, as a CUDA graph, and launched as one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch

from quire_engine.attention.context import AttentionContext, attention_context
from quire_engine.kernels.transfer import to_device
from quire_engine.layers.experts import Experts
from quire_engine.models.decoder import CausalLM
from quire_engine.models.language_model import LanguageModel

Run = Callable[[], None]
Capture = Callable[[Run], Run]
"""Makes of what runs a model on buffers what does the same again, on what the buffers hold then."""

LARGEST = 512

LONGEST_SECONDS = 60.0
"""So long sizes are recorded at a start. Batches of those that are left are padded to the next larger one."""


def padded_sizes(most: int) -> list[int]:
    """Batch sizes that are recorded, for batches of up to `most`: a batch is padded by an eighth or by 7 rows."""
    largest = min(most, LARGEST)
    sizes = [*(1, 2, 4), *range(8, 128, 8), *range(128, 256, 16), *range(256, LARGEST, 32)]
    return [*(size for size in sizes if size < largest), largest]


def can_be_padded(model: LanguageModel) -> bool:
    """Whether steps of decodes do the same work whatever their tensors hold, and never wait for the device."""
    if not isinstance(model, CausalLM):
        return False
    layers = model.attention_layers()
    experts = [module for module in model.modules() if isinstance(module, Experts)]
    return all(layer.has_kernels for layer in layers) and all(e.in_one_product for e in experts)


class PaddedDecodes:
    """The buffers, and what was recorded of each size."""

    def __init__(
        self,
        model: LanguageModel,
        *,
        max_num_seqs: int,
        max_blocks_per_seq: int,
        spare_slot: int,
        rotates_by_length: bool,
        dtype: torch.dtype,
        device: torch.device,
        capture: Capture,
    ) -> None:
        """`spare_slot` is of a page that no sequence has: rows of padding write there."""
        self._model, self._spare_slot, self.device, self._capture = model, spare_slot, device, capture
        self.sizes = padded_sizes(max_num_seqs)
        rows = self.sizes[-1]
        # Rows of padding hold a token of an earlier step, or 0: any that there is.
        self._token_ids, self._positions, self._rotated_for = torch.zeros(3, rows, dtype=torch.int64, device=device)
        self._slots = torch.full((rows,), spare_slot, dtype=torch.int64, device=device)
        self._lengths = torch.zeros(rows, dtype=torch.int32, device=device)  # 0: attends to nothing
        self._tables = torch.zeros(rows, max_blocks_per_seq, dtype=torch.int64, device=device)
        self._hidden = torch.zeros(rows, model.shape.hidden_size, dtype=dtype, device=device)
        self._rotates_by_length = rotates_by_length
        self._recorded: dict[int, Run] = {}
        self._recorded_sizes: list[int] = []

    def rehearse(self, size: int) -> None:
        """Run a step as it will be recorded, so that kernels are compiled and libraries have their workspaces."""
        self._step_of(size)()

    def record(self, size: int) -> None:
        """Have batches of up to `size` replayed. The largest comes first: its memory serves the others too."""
        self._recorded[size] = self._capture(self._step_of(size))
        self._recorded_sizes = sorted(self._recorded)

    def forget(self) -> None:
        """Take no more steps."""
        self._recorded.clear()
        self._recorded_sizes = []

    def takes(self, context: AttentionContext) -> bool:
        """Whether a batch is one of decodes alone, of the model as it is, and not too large."""
        changed = context.adapters or context.adapted is not None or context.axes is not None
        largest = self._recorded_sizes[-1] if self._recorded_sizes else 0
        return not (context.prefills or changed) and 0 < context.num_decodes <= largest

    def run(self, token_ids: torch.Tensor, positions: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """What the model makes of a batch that `takes` lets pass, of token ids and positions [num_decodes] int64.

        Hidden states [num_decodes, hidden_size], which are valid until the next call.
        """
        count = context.num_decodes
        size = self._recorded_sizes[bisect_left(self._recorded_sizes, count)]
        self._token_ids[:count] = token_ids
        self._positions[:count] = positions
        self._slots[:count] = context.slots
        self._slots[count:size] = self._spare_slot
        if context.lengths is not None:
            self._rotated_for[:count] = context.lengths
        self._tables[:count, : context.decode_blocks.shape[1]] = context.decode_blocks
        lengths = torch.tensor(context.decode_lengths + [0] * (size - count), dtype=torch.int32)
        self._lengths[:size] = to_device(lengths, self.device)
        self._recorded[size]()
        return self._hidden[:count]

    def _step_of(self, size: int) -> Run:
        context = AttentionContext(
            self._slots[:size],
            size,
            [],  # they are on the device
            self._tables[:size],
            [],
            self._rotated_for[:size] if self._rotates_by_length else None,
            lengths_on_device=self._lengths[:size],
        )

        def step() -> None:
            with attention_context(context):
                self._hidden[:size] = self._model(self._token_ids[:size], self._positions[:size])

        return step
