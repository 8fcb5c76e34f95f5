"""The tokens whose logits a request adjusts: those that it has seen, or that it gave a bias. Kept on the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from quire_engine.core.step import NewSequence
from quire_engine.sampling.adjustments import Adjustments

_FIRST_WIDTH = 64


@dataclass(slots=True)
class _Line:
    """The host's view of one request's line of the table."""

    index: int
    repetition: float
    frequency: float
    presence: float
    column_of: dict[int, int] = field(default_factory=dict)  # by token
    counts: list[int] = field(default_factory=list)  # of the output, by column


class TokenTable:
    """One line a request that has penalties or biases, of as many columns as it has such tokens.

    A step changes the columns of its new tokens alone. Lines and columns are added by doubling: the memory is that of
    the most lines there were at once, each as wide as the widest, at 20 bytes a column. It is free when the last line
    has gone.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lines: dict[int, _Line] = {}  # by row of the batch
        self._clear()

    @property
    def num_bytes(self) -> int:
        """Of the device's memory."""
        return self._token_ids.nbytes + self._values.nbytes

    def add(self, row: int, sequence: NewSequence) -> None:
        """Meet a request. Without penalties and biases it has no line."""
        params = sequence.params
        if not params.penalized and not params.logit_bias:
            return
        if not self._free:
            self._grow_lines()
        line = _Line(self._free.pop(), params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
        self._lines[row] = line
        biases = params.logit_bias or {}
        # A prompt's tokens matter to the repetition penalty alone.
        prompt = sequence.token_ids[: sequence.num_prompt_tokens] if params.repetition_penalty != 1.0 else []
        output = sequence.token_ids[sequence.num_prompt_tokens :]
        line.column_of = {token: column for column, token in enumerate(dict.fromkeys((*biases, *prompt, *output)))}
        line.counts = [0] * len(line.column_of)
        for token in output if params.penalized else ():
            line.counts[line.column_of[token]] += 1
        self._fill(line, biases, {*prompt, *output})

    def remove(self, row: int) -> None:
        line = self._lines.pop(row, None)
        if line is None:
            return
        if self._lines:
            self._free.append(line.index)
        else:
            self._clear()

    def count(self, new_tokens: Iterable[tuple[int, Sequence[int]]]) -> None:
        """Count output tokens, given as (row, tokens)."""
        changed: dict[tuple[int, int], tuple[int, int]] = {}  # (line, column) -> (token, its count)
        for row, tokens in new_tokens:
            line = self._lines.get(row)
            if line is None:
                continue
            for token in tokens:
                column = line.column_of.setdefault(token, len(line.column_of))
                if column == len(line.counts):
                    line.counts.append(0)
                line.counts[column] += 1
                changed[line.index, column] = (token, line.counts[column])
        if not changed:
            return
        self._grow_columns(1 + max(column for _, column in changed))
        places = self._to_device(np.array([*changed], dtype=np.int64).T)
        what = self._to_device(np.array([*changed.values()], dtype=np.int64).T)
        self._token_ids[places[0], places[1]] = what[0]
        self._values[1, places[0], places[1]] = 1.0
        self._values[2, places[0], places[1]] = what[1].float()

    def adjustments(self, rows: Sequence[int]) -> Adjustments | None:
        """What to adjust when the batch's i-th row of logits is that of `rows[i]`. None for nothing."""
        if not self._lines:
            return None
        lines = [(i, self._lines[row]) for i, row in enumerate(rows) if row in self._lines]
        lines = [(i, line) for i, line in lines if line.column_of]
        if not lines:
            return None
        where = self._to_device(np.array([(i, line.index, len(line.column_of)) for i, line in lines], dtype=np.int64).T)
        penalties = self._to_device(
            np.array([(line.repetition, line.frequency, line.presence) for _, line in lines], dtype=np.float32).T
        )
        width = max(len(line.column_of) for _, line in lines)
        biases, seen, counts = self._values[:, where[1], :width]
        return Adjustments(
            rows=where[0],
            num_tokens=where[2],
            token_ids=self._token_ids[where[1], :width],
            biases=biases,
            seen=seen.bool(),
            counts=counts,
            repetition=penalties[0],
            frequency=penalties[1],
            presence=penalties[2],
        )

    def _fill(self, line: _Line, biases: dict[int, float], seen: set[int]) -> None:
        """Write a whole line. The tokens with a bias come first, and all that follow are seen."""
        tokens = np.array([*line.column_of], dtype=np.int64)
        self._grow_columns(len(tokens))
        values = np.zeros((3, len(tokens)), dtype=np.float32)
        values[0, : len(biases)] = [*biases.values()]
        values[1] = 1.0
        values[1, : len(biases)] = [token in seen for token in biases]
        values[2] = line.counts
        self._token_ids[line.index, : len(tokens)] = self._to_device(tokens)
        self._values[:, line.index] = 0.0
        self._values[:, line.index, : len(tokens)] = self._to_device(values)

    def _clear(self) -> None:
        self._free: list[int] = []
        self._token_ids = torch.zeros((0, _FIRST_WIDTH), dtype=torch.int64, device=self._device)
        self._values = torch.zeros((3, 0, _FIRST_WIDTH), dtype=torch.float32, device=self._device)  # bias, seen, count

    def _grow_lines(self) -> None:
        before = self._token_ids.shape[0]
        self._resize(max(1, 2 * before), self._token_ids.shape[1])
        self._free.extend(range(before, self._token_ids.shape[0]))

    def _grow_columns(self, needed: int) -> None:
        width = self._token_ids.shape[1]
        if needed > width:
            self._resize(self._token_ids.shape[0], max(needed, 2 * width))

    def _resize(self, lines: int, width: int) -> None:
        before = self._token_ids.shape
        token_ids, values = self._token_ids, self._values
        self._token_ids = token_ids.new_zeros((lines, width))
        self._token_ids[: before[0], : before[1]] = token_ids
        self._values = values.new_zeros((3, lines, width))
        self._values[:, : before[0], : before[1]] = values

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)
