"""Prompts' hidden states into one vector each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from quire_engine.core.pooling import Pooling, PoolingParams
from quire_engine.core.step import ScheduledSequence, Step


class Pooler:
    """Keeps of prompts that are computed in several steps what their vector is made of."""

    def __init__(self, pooling: Pooling) -> None:
        self._pooling = pooling
        self._params: dict[str, PoolingParams] = {}
        self._kept: dict[str, torch.Tensor] = {}  # [size] float32: the sum so far, or the first token's

    def apply(self, step: Step) -> None:
        """Forget and meet requests. One that was preempted begins again."""
        for request_id in step.removed:
            self._params.pop(request_id, None)
            self._kept.pop(request_id, None)
        for sequence in step.new:
            if sequence.pooling is not None:
                self._params[sequence.request_id] = sequence.pooling

    def pool(self, hidden: torch.Tensor, rows: Sequence[tuple[ScheduledSequence, int]]) -> dict[str, list[float]]:
        """Vectors of the prompts that end in this step, by request.

        hidden is [num_tokens, size]; `rows` are the scheduled sequences with each one's first row.
        """
        for scheduled, first in rows:
            self._keep(scheduled, hidden[first : first + len(scheduled.token_ids)])
        ended = [scheduled for scheduled, _ in rows if scheduled.pools]
        if not ended:
            return {}
        vectors = torch.stack([self._kept.pop(s.request_id) for s in ended])
        if self._pooling.over == "mean":
            vectors = vectors / torch.tensor([[s.end] for s in ended], device=vectors.device)
        # All that are alike come from the device together.
        by_params: dict[PoolingParams, list[int]] = {}
        for row, scheduled in enumerate(ended):
            by_params.setdefault(self._params[scheduled.request_id], []).append(row)
        result: dict[str, list[float]] = {}
        for params, own in by_params.items():
            for row, vector in zip(own, self._finish(vectors[own], params).tolist(), strict=True):
                result[ended[row].request_id] = vector
        return result

    def _keep(self, scheduled: ScheduledSequence, hidden: torch.Tensor) -> None:
        """Take what counts of the hidden states [count, size] of the next part of a prompt."""
        name = scheduled.request_id
        match self._pooling.over:
            case "mean":
                part = hidden.float().sum(0)
                self._kept[name] = self._kept[name] + part if scheduled.start else part
            case "first":
                if scheduled.start == 0:
                    self._kept[name] = hidden[0].float()
            case "last":
                if scheduled.pools:
                    self._kept[name] = hidden[-1].float()

    def _finish(self, vectors: torch.Tensor, params: PoolingParams) -> torch.Tensor:
        """[rows, size] -> [rows, dimensions]."""
        vectors = vectors[:, : params.dimensions]
        normalises = self._pooling.normalised if params.normalize is None else params.normalize
        return functional.normalize(vectors, dim=-1) if normalises else vectors
