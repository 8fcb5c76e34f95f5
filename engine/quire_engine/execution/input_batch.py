"""The running requests as rows of persistent arrays, which each step changes a little."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from quire_engine.attention.context import AttentionContext, PrefillSpan
from quire_engine.core.merged_patches import MergedCount
from quire_engine.core.step import LATEST, ScheduledSequence, Step
from quire_engine.execution.decode_rows import DecodeRows
from quire_engine.execution.image_positions import AXES, ImagePositions
from quire_engine.execution.prompt_logprobs import PromptLogprobs, PromptRows
from quire_engine.execution.sampling_state import SamplingState
from quire_engine.kernels.transfer import to_device
from quire_engine.sampling.sampler import SamplingBatch


@dataclass(slots=True)
class ModelInputs:
    """One step as tensors on the device. Sequences that decode come first."""

    token_ids: torch.Tensor  # [num_tokens] int64
    positions: torch.Tensor  # [num_tokens] int64
    context: AttentionContext
    sampled: list[str]  # the requests that sample
    # [len(sampled)] int64: the batch's rows whose hidden state gives the next token; None for all, in their order
    sampled_tokens: torch.Tensor | None
    sampled_rows: torch.Tensor  # [len(sampled)] int64: the rows of these requests, of the arrays that persist
    sampling: SamplingBatch | None  # None on ranks that do not sample
    prompt_logprobs: list[PromptRows]
    firsts: list[tuple[ScheduledSequence, int]]  # each sequence's first row


class InputBatch:
    """Block tables and sampling parameters by row, and the buffers that a step's tokens are laid out in."""

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_blocks_per_seq: int,
        block_size: int,
        sampling: SamplingState | None,
        device: torch.device,
        rotates_by_length: bool = False,
        adapts_images: bool = False,
        grids: MergedCount | None = None,
        adapters: bool = False,
        feeds_back: bool = False,
    ) -> None:
        """`sampling` is None on ranks that do not sample. With `adapts_images` prompts with images have an adapter.

        `grids` are of a model whose tokens have positions by time, height and width. With `adapters` requests may
        choose one. With `feeds_back` the latest token of each sequence is kept, for steps that do not know it.
        """
        self._block_size = block_size
        self.device = device
        self._sampling = sampling
        self._prompt_logprobs = PromptLogprobs()
        self._rows: dict[str, int] = {}
        self._free_rows = list(range(max_num_seqs))
        self._tables = np.zeros((max_num_seqs, max_blocks_per_seq), dtype=np.int64)
        self._rotated_for = np.zeros(max_num_seqs, dtype=np.int64) if rotates_by_length else None
        self._adapted = np.zeros(max_num_seqs, dtype=bool) if adapts_images else None
        self._adapters = np.zeros(max_num_seqs, dtype=np.int64) if adapters else None
        self._grids = grids
        self._image_positions: dict[str, ImagePositions] = {}  # of sequences with images, where there are `grids`
        self._shifts = np.zeros(max_num_seqs, dtype=np.int64)  # of positions behind a sequence's images
        # Token ids, positions, slots and, where asked for, lengths side by side: one copy takes them to the device.
        self._staging = torch.zeros((4 if rotates_by_length else 3, max_num_batched_tokens), dtype=torch.int64)
        self._staged = self._staging.numpy()
        self._latest = torch.zeros(max_num_seqs, dtype=torch.int64, device=device) if feeds_back else None
        self._none_decode = self._rows_that_decode([])
        self._decodes = self._none_decode  # in the latest step

    def apply(self, step: Step) -> None:
        """Bring the rows up to date with what the step removes, adds and grows."""
        if step.removed or step.new:
            self._decodes = self._none_decode  # the same requests may come back in other rows
        for request_id in step.removed:
            row = self._rows.pop(request_id)
            self._image_positions.pop(request_id, None)
            self._free_rows.append(row)
            if self._sampling is not None:
                self._sampling.remove(row)
            self._prompt_logprobs.remove(request_id)
        for sequence in step.new:
            row = self._rows[sequence.request_id] = self._free_rows.pop()
            if self._sampling is not None:
                self._sampling.add(row, sequence)
            if self._rotated_for is not None:
                self._rotated_for[row] = sequence.rotated_for
            if self._adapted is not None:
                self._adapted[row] = bool(sequence.images)
            if self._adapters is not None:
                self._adapters[row] = sequence.adapter
            self._shifts[row] = 0
            if self._grids is not None and sequence.images:
                own = self._image_positions[sequence.request_id] = ImagePositions(sequence.images, self._grids)
                self._shifts[row] = own.shift
            self._prompt_logprobs.add(sequence)
        for scheduled in step.scheduled:
            if scheduled.new_block_ids:
                row = self._rows[scheduled.request_id]
                first = scheduled.first_new_block
                self._tables[row, first : first + len(scheduled.new_block_ids)] = scheduled.new_block_ids
                self._decodes.give_blocks()
        if self._sampling is not None:
            self._sampling.follow((self._rows[s.request_id], s) for s in step.scheduled)

    def lay_out(self, step: Step) -> ModelInputs:
        """The step's tokens as tensors. They are valid until the next call."""
        decodes = [s for s in step.scheduled if len(s.token_ids) == 1]
        prompts = [s for s in step.scheduled if len(s.token_ids) > 1]
        num_decodes = len(decodes)
        request_ids = [s.request_id for s in decodes]
        if request_ids != self._decodes.request_ids:
            self._decodes = self._rows_that_decode(request_ids)
        lengths = self._decodes.lay_out(decodes, self._tables) if decodes else []
        spans, end = [], num_decodes
        for sequence in prompts:
            first, end = end, end + len(sequence.token_ids)
            spans.append(self._lay_out_prompt(sequence, first))

        if self._rotated_for is not None:
            self._lay_out_lengths([*decodes, *prompts], self._rotated_for)
        inputs = to_device(self._staging[:, :end], self.device).unbind() if prompts else self._decodes.staged()
        if self._latest is not None:
            self._feed_back(inputs[0][:num_decodes], decodes, self._latest)
        context = AttentionContext(
            inputs[2],
            num_decodes,
            lengths,
            self._decodes.tables,
            spans,
            None if self._rotated_for is None else inputs[3],
            self._axes([*decodes, *prompts]),
            None if self._adapted is None else self._adapted_rows([*decodes, *prompts], self._adapted),
            ends=self._decodes.ends,
            adapters=() if self._adapters is None else self._rows_of_adapters([*decodes, *prompts], self._adapters),
        )

        firsts = [*zip(decodes, range(num_decodes), strict=True)]
        firsts += [(s, span.first) for s, span in zip(prompts, spans, strict=True)]
        prompt_logprobs = self._prompt_logprobs.of(firsts)
        sampled_tokens: torch.Tensor | None = None
        if len(decodes) == len(step.scheduled) and all(s.samples for s in decodes):
            sequences, rows, sampled_rows = decodes, self._decodes.rows, self._decodes.on_device
            context.asks_logits = True
        else:
            lasts = [(s, first + len(s.token_ids) - 1) for s, first in firsts if s.samples]
            beside = _beside(step, lasts)
            lasts += beside
            sequences = [s for s, _ in lasts]
            rows, lengths = [self._rows[s.request_id] for s in sequences], [s.end for s in sequences]
            places = np.array([[last for _, last in lasts], rows], dtype=np.int64)
            sampled_tokens, sampled_rows = to_device(places, self.device).unbind()
            if not prompt_logprobs and not beside:
                context.wanted, context.asks_logits = sampled_tokens, True
        sampling = None
        if self._sampling is not None:
            sampling = self._sampling.batch(rows, lengths, [s.allowed for s in sequences])
        return ModelInputs(
            inputs[0],
            inputs[1],
            context,
            [s.request_id for s in sequences],
            sampled_tokens,
            sampled_rows,
            sampling,
            prompt_logprobs,
            firsts,
        )

    def keep(self, inputs: ModelInputs, token_ids: torch.Tensor) -> None:
        """Feed back what was sampled for a step: `token_ids` [len(inputs.sampled)] int64, with `NO_TOKEN` for some."""
        if self._latest is not None:
            # The sequence of a token that cannot be told goes on with any, until that is known.
            self._latest.index_copy_(0, inputs.sampled_rows, token_ids.clamp_min(0))

    def _feed_back(self, token_ids: torch.Tensor, decodes: list[ScheduledSequence], latest: torch.Tensor) -> None:
        """Replace, in place, what the host does not know yet of the tokens of decodes."""
        if any(s.token_ids[0] == LATEST for s in decodes):
            token_ids.copy_(torch.where(token_ids == LATEST, latest[self._decodes.on_device], token_ids))

    def _rows_that_decode(self, request_ids: list[str]) -> DecodeRows:
        rows = [self._rows[request_id] for request_id in request_ids]
        return DecodeRows(request_ids, rows, self._block_size, self._staging, self.device)

    def _lay_out_prompt(self, sequence: ScheduledSequence, first: int) -> PrefillSpan:
        count = len(sequence.token_ids)
        positions = np.arange(sequence.start, sequence.end)
        table = self._tables[self._rows[sequence.request_id], : -(-sequence.end // self._block_size)]
        token_ids, all_positions, slots = self._staged[:3, first : first + count]
        token_ids[:] = sequence.token_ids
        all_positions[:] = positions
        slots[:] = table[positions // self._block_size] * self._block_size + positions % self._block_size
        return PrefillSpan(first, count, sequence.start, to_device(table, self.device))

    def _lay_out_lengths(self, sequences: list[ScheduledSequence], rotated_for: np.ndarray) -> None:
        """The length that each token is rotated for: the sequence's, or what it has with the token."""
        first = 0
        for sequence in sequences:
            last = first + len(sequence.token_ids)
            lengths = np.arange(sequence.start + 1, sequence.end + 1)
            np.maximum(lengths, rotated_for[self._rows[sequence.request_id]], out=self._staged[3, first:last])
            first = last

    def _axes(self, sequences: list[ScheduledSequence]) -> torch.Tensor | None:
        """Each token's time, height and width; None where no sequence has images."""
        if not self._image_positions:
            return None
        counts = [len(s.token_ids) for s in sequences]
        shifts = np.repeat(self._shifts[[self._rows[s.request_id] for s in sequences]], counts)
        axes = np.tile(self._staged[1, : len(shifts)] + shifts, (AXES, 1))
        first = 0
        for sequence, count in zip(sequences, counts, strict=True):
            own = self._image_positions.get(sequence.request_id)
            if own is not None and sequence.start < own.end:
                axes[:, first : first + count] = own.of(sequence.start, sequence.end)
            first += count
        return to_device(axes, self.device)

    def _adapted_rows(self, sequences: list[ScheduledSequence], adapted: np.ndarray) -> torch.Tensor | None:
        """The batch's rows of sequences that are adapted."""
        each = np.repeat(adapted[[self._rows[s.request_id] for s in sequences]], [len(s.token_ids) for s in sequences])
        return to_device(each.nonzero()[0], self.device) if each.any() else None

    def _rows_of_adapters(
        self, sequences: list[ScheduledSequence], adapters: np.ndarray
    ) -> tuple[tuple[int, torch.Tensor], ...]:
        """The batch's rows of each adapter, by its number."""
        chosen = adapters[[self._rows[s.request_id] for s in sequences]]
        if not chosen.any():
            return ()
        each = np.repeat(chosen, [len(s.token_ids) for s in sequences])
        return tuple(
            (int(number), to_device((each == number).nonzero()[0], self.device))
            for number in np.unique(chosen)
            if number
        )


def _beside(step: Step, lasts: list[tuple[ScheduledSequence, int]]) -> list[tuple[ScheduledSequence, int]]:
    """Those that sample from another sequence's last token, with the place of that."""
    beginning = [s for s in step.scheduled if s.samples_after is not None]
    if not beginning:
        return []
    places = {s.request_id: last for s, last in lasts}
    return [(s, places[s.samples_after]) for s in beginning if s.samples_after is not None]
