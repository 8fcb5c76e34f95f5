"""The plan of one LLMService: whether the model fits, with each term of the sum."""

from __future__ import annotations

from collections.abc import Callable

from quire_engine.memory_plan.model_facts import ModelFacts
from quire_engine.memory_plan.quantization import ROUNDED
from quire_operator.api import ImageSource, ModelSource, PlanStatus, Spec
from quire_operator.plan.fit import Trial, smallest_tensor
from quire_operator.plan.gpu_memory import Device, Skipped
from quire_operator.plan.suggestions import on_fewer_gpus, suggestions

_OVERRIDING = (
    "--block-size",
    "--device",
    "--dtype",
    "--enable-lora",
    "--gpu-memory-utilization",
    "--kv-cache-dtype",
    "--kv-cache-memory-bytes",
    "--load-format",
    "--lora-modules",
    "--limit-mm-per-prompt",
    "--max-model-len",
    "--max-num-batched-tokens",
    "--max-num-seqs",
    "--mm-processor-kwargs",
    "--model",
    "--no-enable-chunked-prefill",
    "-pp",
    "-q",
    "-tp",
    "--num-gpu-blocks-override",
    "--pipeline-parallel-size",
    "--quantization",
    "--revision",
    "--tensor-parallel-size",
)
"""Flags that change the sum. In spec.engine.args they win over the fields that are planned with."""

_VLLM_LAYERS = "VLLM_PP_LAYER_PARTITION"
"""Shares layers out to stages otherwise than vLLM does by itself."""

_OVERRIDING_ON_CPU = ("--swap-space",)
"""Further ones, where swapped pages are of the pod's memory, as all else."""


_NOT_COUNTED: tuple[tuple[str, Callable[[Spec], bool]], ...] = (
    ("spec.model.kvCacheDtype", lambda spec: spec.model.kv_cache_dtype != "auto"),
    ("spec.model.adapters", lambda spec: bool(spec.model.adapters) and spec.engine.type != "quire"),
    ("spec.engine.speculative", lambda spec: spec.engine.speculative is not None),
)
"""Fields that change the sum, and whether they do."""


def cannot_be_planned(spec: Spec) -> Skipped | None:
    """Why a service's memory cannot be computed from its spec, whatever the model; None when it can."""
    if spec.engine.type not in ("quire", "vllm"):
        return Skipped("OtherEngine", f"only quire and vllm divide memory as planned, and not {spec.engine.type}")
    if spec.engine.type == "vllm" and spec.gpus_per_pod == 0:
        return Skipped(
            "OtherEngine", "vllm on the CPU takes its memory from VLLM_CPU_KVCACHE_SPACE, and not as planned"
        )
    for field, asks in _NOT_COUNTED:
        if asks(spec):
            return Skipped("NotPlanned", f"what {field} saves or costs is not planned yet")
    for argument in spec.engine.args:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag in _OVERRIDING or (spec.gpus_per_pod == 0 and flag in _OVERRIDING_ON_CPU):
            return Skipped(
                "OwnArguments",
                f"spec.engine.args has {flag}, which is not planned with: write its field instead, where it has one",
            )
    for container in (spec.pod_template.get("spec") or {}).get("containers") or []:
        changed = sorted({"args", "command", "resources"} & container.keys())
        if container.get("name") == "engine" and changed:
            what = f"spec.podTemplate sets the engine's {changed[0]}"
            return Skipped("OwnArguments", f"{what}, which is not planned with")
    if spec.engine.type == "vllm" and any(variable.get("name") == _VLLM_LAYERS for variable in spec.engine.env):
        return Skipped("OwnArguments", f"spec.engine.env has {_VLLM_LAYERS}, which is not planned with")
    if spec.gpus_per_pod == 0 and spec.parallelism.tensor * spec.parallelism.pipeline != 1:
        return Skipped("NotPlanned", "several ranks on the CPU are not planned yet")
    return None


def in_the_image(source: ModelSource) -> Skipped | None:
    """Why a model is not read before its pods start; None for one that is not in the engine's image."""
    if not isinstance(source, ImageSource):
        return None
    return Skipped("NotPlanned", "weights in the engine's image are not read before a pod runs")


def plan_of(spec: Spec, facts: ModelFacts, device: Device | Skipped) -> PlanStatus:
    """Whether the model fits one GPU's share, or the pod's memory. One that cannot be loaded fits no device."""
    if facts.unreadable is not None and spec.engine.type == "quire":
        text = f"spec.engine.type quire cannot load {spec.model.source}: {facts.unreadable}"
        return PlanStatus(verdict="UnsupportedModel", message=text)
    if isinstance(device, Skipped):
        return skipped_plan(device)
    shape, tensor = facts.shape, spec.parallelism.tensor if device.on_gpu else 1
    if not shape.can_split(tensor):
        heads = f"{shape.num_heads} attention heads, {shape.num_kv_heads} KV heads"
        return skipped_plan(
            Skipped("Indivisible", f"spec.parallelism.tensor is {tensor} and does not divide the model ({heads})")
        )
    pipeline = spec.parallelism.pipeline if device.on_gpu else 1
    if pipeline > shape.num_layers:
        text = f"spec.parallelism.pipeline is {pipeline} and the model has {shape.num_layers} layers to share out"
        return skipped_plan(Skipped("Indivisible", text))
    if pipeline > 1 and facts.stages is None:
        text = "what each pipeline stage holds is not known: layers are of too many sizes, or an older engine read them"
        return skipped_plan(Skipped("NotPlanned", text))
    wanted, found = spec.model.quantization, facts.quantization
    if wanted not in ("auto", found) and not (found is None and wanted in ROUNDED):
        has = f"is quantized by {found}" if found else "is not quantized"
        return skipped_plan(
            Skipped("OtherQuantization", f"spec.model.quantization is {wanted} and the checkpoint {has}: write auto")
        )
    if spec.model.adapters and facts.adapters is None:
        return skipped_plan(Skipped("NotPlanned", "what spec.model.adapters costs is not planned for such a model yet"))
    trial = Trial.of(spec, facts, device)
    if trial.max_model_len > facts.longest:
        return skipped_plan(
            Skipped(
                "BeyondPositions",
                f"spec.model.maxModelLen is {trial.max_model_len} and the model's positions end at {facts.longest}",
            )
        )
    memory, fits, ways = trial.memory(), trial.fits(), suggestions(trial)
    quantized_to, quantized_tensor = on_fewer_gpus(trial) or (None, None)
    return PlanStatus(
        verdict="Fits" if fits else "DoesNotFit",
        message=_sum(trial, ways),
        device=device.name,
        tensor=tensor,
        pipeline=pipeline,
        smallest_tensor=smallest_tensor(trial),
        memory_bytes=device.memory,
        usable_bytes=int(device.memory * trial.utilization),
        weights_bytes=memory.weights,
        activations_bytes=memory.activations,
        other_bytes=memory.others,
        kv_cache_bytes=memory.kv_cache,
        kv_bytes_per_token=trial.kv_bytes_per_token,
        tokens=memory.num_tokens,
        max_model_len=trial.max_model_len,
        full_length_requests=memory.num_tokens // trial.max_model_len,
        quantized_to=quantized_to,
        quantized_tensor=quantized_tensor,
        suggestions=ways,
    )


def skipped_plan(why: Skipped) -> PlanStatus:
    """The plan of a service that was not planned."""
    return PlanStatus(verdict="Skipped", reason=why.reason, message=why.message)


def _sum(trial: Trial, ways: list[str]) -> str:
    memory, limit = trial.memory(), trial.device.memory
    others = memory.others
    adapters = f"adapters {_gib(memory.adapters)} + " if memory.adapters else ""
    usable, used = int(limit * trial.utilization), others + memory.weights + memory.activations
    where = f"each of {trial.tensor} GPUs" if trial.tensor > 1 else "one GPU" if trial.device.on_gpu else "the pod"
    if trial.pipeline > 1:
        where += f" of the largest of {trial.pipeline} stages"
    name = f" ({trial.device.name})" if trial.device.on_gpu else ""
    terms = (
        f"{where}{name} has {_gib(limit)} x {trial.utilization:g} = {_gib(usable)}; "
        f"weights {_gib(memory.weights)} + activations {_gib(memory.activations)} + {adapters}"
        f"process {_gib(others - memory.adapters)} "
        f"= {_gib(used)}"
    )
    wanted = trial.max_model_len * trial.kv_bytes_per_token
    longest = (
        f"one request of {trial.max_model_len} tokens takes {_gib(wanted)} "
        f"at {trial.kv_bytes_per_token / 1024:g} KiB a token"
    )
    if memory.num_tokens >= trial.max_model_len:
        count = memory.num_tokens // trial.max_model_len
        cache = f"the KV cache takes {_gib(memory.kv_cache)}, {memory.num_tokens} tokens"
        return f"{terms}; {cache}; {longest}: {count} fit"
    left = f"{_gib(memory.kv_cache)} are left for the KV cache" if usable > used else f"{_gib(used - usable)} too much"
    return f"{terms}: {left}; {longest}. {_sentence(ways)}"


def _sentence(ways: list[str]) -> str:
    if not ways:
        return "Nothing in the spec makes it fit: take a GPU with more memory, or a smaller model"
    text = ", or ".join(ways)
    return text[0].upper() + text[1:]


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
