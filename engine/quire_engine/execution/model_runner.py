"""Runs steps on one device."""

from __future__ import annotations

import torch

from quire_engine.attention.context import attention_context
from quire_engine.core.step import NewSequence, ScheduledSequence, Step, StepResult, TokenLogprobs
from quire_engine.execution.input_batch import InputBatch, ModelInputs
from quire_engine.execution.kv_cache import KVCache
from quire_engine.models.language_model import LanguageModel
from quire_engine.sampling.logprobs import rank_hidden
from quire_engine.sampling.sampler import choose
from quire_engine.sampling_params import SamplingParams

_WARM_UP = "warm-up"


class ModelRunner:
    """The executor of one process: lays a step out, runs the model, samples."""

    def __init__(self, model: LanguageModel, batch: InputBatch, cache: KVCache) -> None:
        self._model = model
        self._batch = batch
        self._cache = cache

    @torch.inference_mode()
    def execute(self, step: Step) -> StepResult:
        self._batch.apply(step)
        self._cache.move(step)
        inputs = self._batch.lay_out(step)
        with attention_context(inputs.context):
            hidden = self._model(inputs.token_ids, inputs.positions)
        result = StepResult([[] for _ in step.scheduled])
        if inputs.sampled:
            chosen = choose(self._model.logits(hidden[inputs.sampled_tokens]), inputs.sampling)
            tokens = dict(zip(inputs.sampled, chosen.token_ids, strict=True))
            result.token_ids = [[tokens[s.request_id]] if s.samples else [] for s in step.scheduled]
            result.logprobs = {inputs.sampled[row]: [entry] for row, entry in chosen.logprobs.items()}
        if inputs.prompt_logprobs:
            result.prompt_logprobs = self._rank_prompts(inputs, hidden)
        return result

    def _rank_prompts(self, inputs: ModelInputs, hidden: torch.Tensor) -> dict[str, list[TokenLogprobs]]:
        """How likely the prompts' tokens are, by request."""
        return {
            rows.request_id: rank_hidden(
                hidden[rows.first : rows.first + len(rows.token_ids)],
                torch.tensor(rows.token_ids, dtype=torch.int64).to(hidden.device),
                rows.count,
                self._model.logits,
                self._model.shape.vocab_size,
            )
            for rows in inputs.prompt_logprobs
        }

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
