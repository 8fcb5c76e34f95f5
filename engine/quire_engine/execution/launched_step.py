"""A step that was handed to the device, and what comes back of it."""

from __future__ import annotations

import torch

from quire_engine.core.step import Step, StepResult
from quire_engine.sampling.sampler import Chosen


class LaunchedStep:
    """The tokens that a step samples are on their way to the host while the next step is handed over."""

    def __init__(self, step: Step, device: torch.device) -> None:
        self.result = StepResult([[] for _ in step.scheduled])  # what is known of it
        self._step, self._device = step, device
        self._sampled: list[str] = []
        self._chosen: Chosen | None = None
        self._token_ids: torch.Tensor | None = None  # on the host, once `_end` has come
        self._end: torch.cuda.Event | None = None

    def bring(self, sampled: list[str], chosen: Chosen) -> None:
        """Copy the next tokens of the requests `sampled` to the host, when the device is there."""
        self._sampled, self._chosen, self._token_ids = sampled, chosen, chosen.token_ids
        if self._device.type == "cuda":
            self._token_ids = torch.empty(chosen.token_ids.shape, dtype=torch.int64, pin_memory=True)
            self._token_ids.copy_(chosen.token_ids, non_blocking=True)

    def mark_end(self) -> None:
        """All that the step does was handed over."""
        if self._device.type == "cuda":
            self._end = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._end.record(torch.cuda.current_stream(self._device))

    def wait(self) -> StepResult:
        """The result, once the device has come to the end of the step."""
        if self._end is not None:
            self._end.synchronize()
        if self._chosen is not None and self._token_ids is not None:
            tokens = dict(zip(self._sampled, self._token_ids.tolist(), strict=True))
            self.result.token_ids = [[tokens[s.request_id]] if s.samples else [] for s in self._step.scheduled]
            self.result.logprobs = {self._sampled[row]: [entry] for row, entry in self._chosen.logprobs().items()}
        return self.result
