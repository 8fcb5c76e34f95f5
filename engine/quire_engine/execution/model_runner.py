"""Runs steps on one device."""

from __future__ import annotations

import logging
import time
from collections import deque

import torch

from quire_engine.attention.context import attention_context
from quire_engine.core.adapters import Adapting, StoredAdapter
from quire_engine.core.pooling import Pooling, PoolingParams
from quire_engine.core.step import Executor, NewSequence, ScheduledSequence, Step, StepResult, TokenLogprobs
from quire_engine.core.step_profile import NO_PROFILE, StepProfile
from quire_engine.distributed.place import Place
from quire_engine.execution.device import device_memory
from quire_engine.execution.image_embedder import ImageEmbedder
from quire_engine.execution.input_batch import InputBatch, ModelInputs
from quire_engine.execution.kv_cache import KVCache
from quire_engine.execution.launched_step import LaunchedStep
from quire_engine.execution.model_spans import time_parts
from quire_engine.execution.padded_decodes import LONGEST_SECONDS, PaddedDecodes
from quire_engine.execution.pooling import Pooler
from quire_engine.kernels.choice import by_gpu_kernels
from quire_engine.kernels.greatest import greatest
from quire_engine.memory_plan.plan import GIB
from quire_engine.models.language_model import LanguageModel
from quire_engine.sampling.logprobs import rank_hidden
from quire_engine.sampling.sampler import Chosen, Draw, choose, draw_within
from quire_engine.sampling_params import SamplingParams

log = logging.getLogger(__name__)

_WARM_UP = "warm-up"
_GIVE_UP, _ENOUGH, _GO_ON = range(3)  # what a rank says after a recording: the least holds for all


class ModelRunner:
    """Runs one rank's part of steps: lays a step out, runs the layers, and in the last stage samples.

    The executor of an engine that has one rank. Of several, only rank 0 samples. With `pooling` it makes vectors
    instead. A step that was submitted is the device's. With a `depth` of 2, where `batch` feeds back, so may be the
    next one, before anybody asked for the first one's result. On a CPU a step ends before `submit` returns.
    """

    def __init__(
        self,
        model: LanguageModel,
        batch: InputBatch,
        cache: KVCache,
        place: Place,
        dtype: torch.dtype,
        pooling: Pooling | None = None,
        images: ImageEmbedder | None = None,
        adapters: Adapting | None = None,
        padded: PaddedDecodes | None = None,
        depth: int = 1,
    ) -> None:
        self.depth = depth
        self._launched: deque[LaunchedStep] = deque()
        self._model = model
        self._pooler = None if pooling is None else Pooler(pooling)
        self._images = images
        self._adapters = adapters
        self._padded = padded
        self._batch = batch
        self._drawing = drawing_on(batch.device)
        self._cache = cache
        self._place = place
        self._dtype = dtype  # of hidden states
        self._profile = NO_PROFILE

    def time_by(self, profile: StepProfile) -> None:
        """Have the parts of steps timed."""
        self._profile = profile
        time_parts(self._model, profile)

    @torch.inference_mode()
    def record_decodes(self, room: int) -> int:
        """Have steps of decodes alone replayed from here on, where the model lets them. Returns how many were recorded.

        All ranks have to call it, and record the same. Where they cannot be recorded, or take more than `room` bytes of
        the device, which the plan leaves, the log says why, and all steps run as before.
        """
        padded = self._padded
        if not self._place.least(int(padded is not None)) or padded is None:
            return 0
        if padded.device.type == "cuda":
            torch.cuda.empty_cache()  # as a recording does at first: what it frees is not taken from what is taken
        before, until = device_memory(padded.device).used, time.monotonic() + LONGEST_SECONDS
        count = 0
        for size in reversed(padded.sizes):
            why_not = self._record(padded, size)
            taken = device_memory(padded.device).used - before
            if why_not is None and taken > room:
                leaves = f"--gpu-memory-utilization leaves {room / GIB:.2f}: lower it"
                why_not = f"they take {taken / GIB:.2f} GiB, and {leaves}"
            own = _GIVE_UP if why_not is not None else _ENOUGH if time.monotonic() > until else _GO_ON
            verdict = self._place.least(own)
            if verdict == _GIVE_UP:
                padded.forget()
                log.warning(
                    "decodes are not recorded as CUDA graphs, which costs time between kernels: %s",
                    why_not or "another rank cannot",
                )
                return 0
            count += 1
            if verdict == _ENOUGH:
                break
        left = len(padded.sizes) - count
        smallest = f", the {left} smallest sizes are left out after {LONGEST_SECONDS:.0f} s" if left else ""
        log.info("CUDA graphs of decodes: %d%s; they take %.2f GiB beside the plan", count, smallest, taken / GIB)
        return count

    def _record(self, padded: PaddedDecodes, size: int) -> str | None:
        """Returns why it cannot be done: whatever a driver or Triton has to say, or that memory ran out."""
        try:
            padded.rehearse(size)
        except Exception as error:
            if self._place.layout.size > 1:  # others wait for this one's part of it
                raise
            return str(error)
        try:
            padded.record(size)  # runs nothing: nobody waits
        except Exception as error:  # noqa: BLE001  drivers and Triton have errors of many kinds, and all end it alike
            return str(error)
        return None

    def forget_recordings(self) -> None:
        """Run all steps as before."""
        if self._padded is not None:
            self._padded.forget()

    @torch.inference_mode()
    def prepare_adapter(self, number: int, adapter: StoredAdapter) -> None:
        """Raises `RuntimeError` where the model was not made for adapters."""
        self._adapted().prepare_adapter(number, adapter)

    def adopt_adapter(self, number: int) -> None:
        self._adapted().adopt_adapter(number)

    def unload_adapter(self, number: int) -> None:
        self._adapted().unload_adapter(number)

    def _adapted(self) -> Adapting:
        if self._adapters is None:
            raise RuntimeError("this model takes no adapters")
        return self._adapters

    def execute(self, step: Step) -> StepResult:
        """Returns nothing of use on ranks that do not sample. No other step may be under way."""
        assert not self._launched, "a step is under way: its result would come first"
        self.submit(step)
        return self.collect()

    @torch.inference_mode()
    def submit(self, step: Step) -> None:
        launched = LaunchedStep(step, self._batch.device)
        with self._profile.span("prepare"):
            self._apply(step)
            inputs = self._batch.lay_out(step) if step.scheduled else None
        if inputs is not None:
            with self._profile.span("model, the rest"):
                hidden = self._run_layers(inputs)
            if hidden is not None:
                self._finish(inputs, hidden, launched)
        if self._place.rank == 0:  # nobody waits for what others do
            launched.mark_end()
        self._launched.append(launched)

    def collect(self) -> StepResult:
        with self._profile.span("wait"):
            return self._launched.popleft().wait()

    def _finish(self, inputs: ModelInputs, hidden: torch.Tensor, launched: LaunchedStep) -> None:
        """Make of the last stage's hidden states [num_tokens, hidden_size] what is wanted of them."""
        if self._pooler is not None:
            launched.result.embeddings = self._pooler.pool(hidden, inputs.firsts)
        if inputs.sampled:
            # The ranks that share the head compute its logits together, and all get them.
            made = inputs.context.logits
            if made is None:
                with self._profile.span("head"):
                    which = inputs.sampled_tokens
                    logits = self._model.logits(hidden if which is None else hidden[which])
            else:
                logits = made.all
            if inputs.sampling is not None:
                with self._profile.span("sampling"):
                    by_greatest = inputs.sampling.by_greatest
                    if by_greatest and made is not None:
                        chosen = Chosen(made.greatest)
                    else:
                        logits = logits if by_greatest else logits.float()
                        chosen = choose(logits, inputs.sampling, self._drawing, greatest)
                    self._batch.keep(inputs, chosen.token_ids)
                    launched.bring(inputs.sampled, chosen)
        if inputs.prompt_logprobs:
            launched.result.prompt_logprobs = self._rank_prompts(inputs, hidden)

    def _apply(self, step: Step) -> None:
        """What the step changes before it runs."""
        self._batch.apply(step)
        if self._pooler is not None:
            self._pooler.apply(step)
        if self._images is not None:
            self._images.apply(step)
        self._cache.move(step)

    def _run_layers(self, inputs: ModelInputs) -> torch.Tensor | None:
        """This stage's hidden states [num_tokens, hidden_size]; None where they went on to the next stage."""
        link, stage = self._place.link, self._place.stage
        if self._pooler is not None or not stage.last:
            inputs.context.wanted, inputs.context.asks_logits = None, False
        more: list[torch.Tensor] = []
        if link is not None and not stage.first:
            size = self._model.shape.hidden_size
            more = [link.receive(len(inputs.token_ids), size, self._dtype, inputs.token_ids.device)]
        images = None if self._images is None else self._images.rows(inputs.firsts)
        if self._padded is not None and images is None and self._padded.takes(inputs.context):
            return self._padded.run(inputs.token_ids, inputs.positions, inputs.context)
        with attention_context(inputs.context):
            if images is None:
                out: torch.Tensor = self._model(inputs.token_ids, inputs.positions, *more)
            else:
                out = self._model(inputs.token_ids, inputs.positions, images=images)
        if link is None or stage.last:
            return out
        link.send(out)
        return None

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


def drawing_on(device: torch.device) -> Draw:
    """How tokens are drawn on `device`."""
    if by_gpu_kernels(device):
        from quire_engine.kernels.gpu import sampling

        return sampling.draw_within
    return draw_within


def warm_up(executor: Executor, num_tokens: int, block_size: int, *, pools: bool = False) -> None:
    """Run a prompt of `num_tokens` and one decode, so that the first request finds everything initialised.

    A model that makes vectors, which `pools`, runs the prompt alone. Writes to the first blocks, which nobody has been
    given yet, and leaves zeros there.
    """
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=0)
    blocks = list(range(-(-(num_tokens + 1) // block_size)))
    new = NewSequence(_WARM_UP, num_tokens, params, 0, pooling=PoolingParams() if pools else None)
    prompt = ScheduledSequence(_WARM_UP, [0] * num_tokens, 0, blocks, samples=not pools, pools=pools)
    executor.execute(Step(new=[new], scheduled=[prompt]))
    if not pools:
        executor.execute(Step(scheduled=[ScheduledSequence(_WARM_UP, [0], num_tokens, [], samples=True)]))
    executor.execute(Step(removed=[_WARM_UP], cleared=blocks))
