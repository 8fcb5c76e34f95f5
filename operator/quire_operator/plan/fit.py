"""What fits on a device: the engine's own memory plan, asked with sizes that were not tried."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from quire_engine.memory_plan.adapter_sizes import AdapterSizes
from quire_engine.memory_plan.model_facts import ModelFacts
from quire_engine.memory_plan.model_shape import BYTES_OF_DTYPE, serving_dtype
from quire_engine.memory_plan.plan import GIB, TOKENS_PER_STEP, MemoryPlan, MemoryRequest, image_room, size_memory
from quire_engine.memory_plan.quantization import ROUNDED
from quire_engine.memory_plan.stages import Stage
from quire_operator.api import Spec
from quire_operator.plan.adapter_flags import adapters_at_once, largest_rank
from quire_operator.plan.gpu_memory import Device

GPU_RESIDENT_BYTES = 1 << 30
"""In use before the engine allocates: CUDA's context, kernels, and what the driver keeps of the memory it reports."""

CPU_RESIDENT_BYTES = 448 << 20
"""The engine's process with torch loaded."""

MOST_GPUS = 64

ROUNDED_BITS = 8.0
"""A weight's that is rounded while it is loaded; its scale, one for a row, is less than a hundredth of it."""


@dataclass(frozen=True)
class Trial:
    """One way to serve the model, and the memory that it takes."""

    spec: Spec
    facts: ModelFacts
    device: Device
    tensor: int
    max_model_len: int
    utilization: float
    bits: float | None = None
    """Bits of a weight in the layers, as if the model were quantized; None as it is."""

    pipeline: int = 1
    """Stages that share the layers."""

    @staticmethod
    def of(spec: Spec, facts: ModelFacts, device: Device) -> Trial:
        """As the spec asks."""
        return Trial(
            spec,
            facts,
            device,
            spec.parallelism.tensor if device.on_gpu else 1,
            spec.model.max_model_len or facts.longest,
            spec.engine.gpu_memory_utilization,
            # Float weights are rounded while they are loaded.
            ROUNDED_BITS if spec.model.quantization in ROUNDED and facts.quantization is None else None,
            spec.parallelism.pipeline if device.on_gpu else 1,
        )

    @property
    def dtype(self) -> str:
        """Of weights, activations and KV cache."""
        return serving_dtype(self.spec.model.dtype, self.facts.shape.dtype, on_gpu=self.device.on_gpu)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes on one GPU of one token's keys and values, in the layers of its stage."""
        request, _ = self._largest
        return request.shape.kv_bytes_per_token(self.dtype)

    def memory(self) -> MemoryPlan:
        """Bytes by purpose on one GPU of the largest stage, or in the pod on CPU."""
        _, plan = self._largest
        return plan

    def stage_memory(self) -> list[MemoryPlan]:
        """Bytes by purpose on one GPU of each stage."""
        return [plan for _, plan in self._stages]

    @cached_property
    def _largest(self) -> tuple[MemoryRequest, MemoryPlan]:
        """The stage that has room for the fewest tokens: no other can use more."""
        return min(self._stages, key=lambda stage: (stage[1].num_tokens, -stage[0].weights))

    @cached_property
    def _stages(self) -> list[tuple[MemoryRequest, MemoryPlan]]:
        requests = [self._request(Stage(index, self.pipeline)) for index in range(self.pipeline)]
        return [(request, size_memory(request)) for request in requests]

    def _request(self, stage: Stage) -> MemoryRequest:
        facts, engine, on_gpu = self.facts, self.spec.engine, self.device.on_gpu
        step = engine.max_num_batched_tokens or TOKENS_PER_STEP["cuda" if on_gpu else "cpu"]
        if not engine.chunked_prefill and engine.max_num_batched_tokens is None:
            step = max(step, self.max_model_len)
        layers = layers_of_stage(engine.type, stage, facts.shape.num_layers)
        weights, adapters = facts.weights, facts.adapters
        if stage.count > 1:
            assert facts.stages is not None, "such a model is not planned over stages"
            weights = facts.stages.weights(stage, layers)
            adapters = facts.stages.adapters(layers) if adapters is not None else None
        return MemoryRequest(
            shape=stage.shape(facts.shape.shard(self.tensor), len(layers)),
            dtype=self.dtype,
            on_gpu=on_gpu,
            limit=self.device.memory,
            resident=GPU_RESIDENT_BYTES if on_gpu else CPU_RESIDENT_BYTES,
            weights=weights.bytes_per_gpu(facts.shape, self.dtype, self.tensor, self.bits),
            utilization=self.utilization,
            block_size=engine.block_size,
            max_model_len=self.max_model_len,
            max_num_seqs=engine.max_num_seqs,
            max_num_batched_tokens=step,
            image_room=image_room(facts.shape, self.dtype) if stage.last else 0,
            adapters=self._adapters(adapters, step),
            swap_space=None if engine.swap_space_gib == 4 else int(engine.swap_space_gib * GIB),
        )

    def _adapters(self, sizes: AdapterSizes | None, step: int) -> int:
        """Bytes of all adapters that may be loaded at once, and of a step of `step` tokens with them."""
        spec = self.spec
        if sizes is None or not spec.model.adapters:
            return 0
        item, rank = BYTES_OF_DTYPE[self.dtype], largest_rank(spec)
        size = sizes.num_bytes(self.facts.shape, self.tensor, item, rank, adapters_at_once(spec), step)
        return size if self.device.on_gpu else size + sizes.file_bytes(rank)

    def fits(self) -> bool:
        """Whether one request of the greatest length fits beside the weights."""
        return self.memory().num_tokens >= self.max_model_len


def layers_of_stage(engine: str, stage: Stage, num_layers: int) -> range:
    """The numbers of a stage's layers, as the engine of this type shares them out."""
    if engine != "vllm":
        return stage.layers(num_layers)
    # vllm/distributed/utils.py, get_pp_indices: of what is left over the last stage has none, and those before it one.
    each, more = divmod(num_layers, stage.count)
    ends = [each * index + max(0, index - (stage.count - 1 - more)) for index in range(stage.count)]
    return range(ends[stage.index], [*ends[1:], num_layers][stage.index])


def smallest_tensor(trial: Trial) -> int | None:
    """The fewest GPUs on which the trial fits; None when no number does, or on CPU."""
    if not trial.device.on_gpu:
        return None
    shape = trial.facts.shape
    sizes = (size for size in range(1, MOST_GPUS + 1) if shape.can_split(size))
    return next((size for size in sizes if replace(trial, tensor=size).fits()), None)


def longest_that_fits(trial: Trial) -> int:
    """The greatest length, in whole pages, of which one request fits; 0 when none does."""
    page = trial.spec.engine.block_size
    low, high = 0, trial.max_model_len // page
    while low < high:
        middle = (low + high + 1) // 2
        if replace(trial, max_model_len=middle * page).fits():
            low = middle
        else:
            high = middle - 1
    return low * page
