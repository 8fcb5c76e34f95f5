"""Runs steps on one device."""

from __future__ import annotations

import torch

from quire_engine.attention.context import attention_context
from quire_engine.core.step import NewSequence, ScheduledSequence, Step
from quire_engine.execution.input_batch import InputBatch
from quire_engine.models.decoder import CausalLM
from quire_engine.sampling.sampler import sample
from quire_engine.sampling_params import SamplingParams

_WARM_UP = "warm-up"


class ModelRunner:
    """The executor of one process: lays a step out, runs the model, samples."""

    def __init__(self, model: CausalLM, batch: InputBatch) -> None:
        self._model = model
        self._batch = batch

    @torch.inference_mode()
    def execute(self, step: Step) -> list[list[int]]:
        """The sampled token of each of `step.scheduled`, in its order; an empty list where it samples none."""
        self._batch.apply(step)
        inputs = self._batch.lay_out(step)
        with attention_context(inputs.context):
            hidden = self._model(inputs.token_ids, inputs.positions)
        if not inputs.sampled:
            return [[] for _ in step.scheduled]
        logits = self._model.logits(hidden[inputs.sampled_tokens])
        tokens = dict(zip(inputs.sampled, sample(logits, inputs.sampling).tolist(), strict=True))
        return [[tokens[s.request_id]] if s.samples else [] for s in step.scheduled]

    def warm_up(self, num_tokens: int, block_size: int) -> None:
        """Run a prompt of `num_tokens` and one decode, so that the first request finds everything initialised.

        Writes to the first blocks, which nobody has been given yet.
        """
        params = SamplingParams(temperature=1.0, top_p=0.9, seed=0)
        num_blocks = -(-(num_tokens + 1) // block_size)
        sequence = ScheduledSequence(_WARM_UP, [0] * num_tokens, 0, list(range(num_blocks)), samples=True)
        self.execute(Step(new=[NewSequence(_WARM_UP, num_tokens, params, 0)], scheduled=[sequence]))
        self.execute(Step(scheduled=[ScheduledSequence(_WARM_UP, [0], num_tokens, [], samples=True)]))
        self._batch.apply(Step(removed=[_WARM_UP]))
