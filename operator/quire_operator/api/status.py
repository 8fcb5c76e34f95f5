"""`status`: what the operator has seen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quire_operator.api.fields import Fields


class Condition(Fields):
    """One aspect of the service, as of one generation of its spec."""

    type: Annotated[str, Field(max_length=316)]
    """Ready, Accepted, Available, Reconciling, Stalled, ModelCached, Autoscaling or Monitored, where they apply."""

    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""

    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    """Why, as one CamelCase word."""

    message: Annotated[str, Field(max_length=32768)] = ""
    """Why, in words, with the next step."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that this says something about."""

    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When `status` last changed."""


class ModelStatus(Fields):
    """The model that is served."""

    name: str | None = None
    """Name that requests ask for."""

    source: str | None = None
    """What the rest is of: its source, as hf://ORG/NAME@REVISION where that is on a hub."""

    revision: str | None = None
    """Commit that is served, once known."""

    max_model_len: int | None = None
    """Longest prompt plus answer, in tokens, once known."""

    quantization: str | None = None
    """Scheme of the weights, once known."""

    parameters: int | None = None
    """Number of parameters, once known."""


class CachedAdapter(Fields):
    """A LoRA adapter of the hub that is on the claim."""

    name: Annotated[str, Field(max_length=253)]
    """Name that requests ask for."""

    source: str
    """What `commit` is of, as hf://ORG/NAME@REVISION."""

    commit: str
    """Commit that pods load from the claim."""


class CacheStatus(Fields):
    """The weights on disk."""

    phase: Literal["Pending", "Downloading", "Ready", "Failed"] | None = None
    """How far the download is; absent where pods download by themselves."""

    claim_name: str | None = None
    """Claim that holds them."""

    model: str | None = None
    """What `commit` is of, as hf://ORG/NAME@REVISION."""

    commit: str | None = None
    """Commit that pods load from the claim, once known. While a newer one is being downloaded, this is the older."""

    adapters: Annotated[list[CachedAdapter], Field(max_length=64)] | None = None
    """Adapters of the hub that are there."""

    bytes: int | None = None
    """Bytes that are there."""

    total_bytes: int | None = None
    """Bytes that will be there, once known."""


class AutoscalingStatus(Fields):
    """What the scaler wants."""

    backend: str | None = None
    """keda or hpa."""

    desired: int | None = None
    """Replicas that it asks for."""


class PlanStatus(Fields):
    """How the model fits its device, computed before a pod starts. Sizes are of one GPU, or of the pod on CPU.

    Where stages share the layers, it is a GPU of the largest stage: the one that has room for the fewest tokens.
    """

    verdict: Literal["Fits", "DoesNotFit", "UnsupportedModel", "Skipped"]
    """Whether one request of the greatest length fits beside the weights; UnsupportedModel when the engine could not
    load them, Skipped when it cannot be known."""

    reason: str | None = None
    """Why there is no plan, as one CamelCase word."""

    message: Annotated[str, Field(max_length=4096)] = ""
    """The sum in words, or why there is none."""

    device: str | None = None
    """The GPU's product, or CPU."""

    tensor: int | None = None
    """GPUs that share each layer."""

    pipeline: int | None = None
    """Stages of as many GPUs, which share the layers."""

    smallest_tensor: int | None = None
    """The fewest GPUs, in each stage, that would hold the model."""

    memory_bytes: int | None = None
    """Memory of the device."""

    usable_bytes: int | None = None
    """What gpuMemoryUtilization leaves of it."""

    weights_bytes: int | None = None
    """Of that, weights."""

    activations_bytes: int | None = None
    """Of that, the most that one step takes."""

    other_bytes: int | None = None
    """Of that, what the process takes by itself, and adapters."""

    kv_cache_bytes: int | None = None
    """What is left for the KV cache."""

    kv_bytes_per_token: int | None = None
    """Bytes of KV cache that one token takes."""

    tokens: int | None = None
    """Tokens that the KV cache holds."""

    max_model_len: int | None = None
    """Longest prompt plus answer that was planned with."""

    full_length_requests: int | None = None
    """Requests of that length that fit at once."""

    quantized_to: str | None = None
    """Scheme of a checkpoint that would take fewer GPUs, where the engine serves it."""

    quantized_tensor: int | None = None
    """The fewest GPUs, in each stage, that would hold a checkpoint of this scheme."""

    suggestions: Annotated[list[str], Field(max_length=16)] = Field(default_factory=list)
    """What would fit instead."""


class Advice(Fields):
    """What could be better, though the service is served as it is."""

    reason: Annotated[str, Field(min_length=1, max_length=64)]
    """Which advice it is, as one CamelCase word."""

    message: Annotated[str, Field(max_length=1024)] = ""
    """Why, and what to write instead."""


class Status(Fields):
    """The state of an LLMService, written by the operator alone."""

    observed_generation: int | None = None
    """Generation of the spec that the rest speaks of."""

    conditions: Annotated[list[Condition], Field(max_length=32)] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    """Ready first, then what it is made of."""

    url: str | None = None
    """Base URL for an OpenAI client inside the cluster."""

    ready: str | None = None
    """Ready of wanted replicas, such as 2/3."""

    gpus: int | None = None
    """GPUs that the pods hold or ask for."""

    gpu_product: str | None = None
    """Their product, once known."""

    replicas: int | None = None
    """Pods that exist, those of an older revision included."""

    ready_replicas: int | None = None
    """Pods that serve."""

    updated_replicas: int | None = None
    """Pods of the newest revision."""

    selector: str | None = None
    """Selector of the pods, for the scale subresource."""

    model: ModelStatus | None = None
    """The model that is served."""

    plan: PlanStatus | None = None
    """How the model fits the GPUs."""

    advice: Annotated[list[Advice], Field(max_length=16)] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["reason"]},
    )
    """What could be better. It changes no condition; the annotation serving.quire.dev/silence-advice takes it away."""

    cache: CacheStatus | None = None
    """The weights on disk."""

    autoscaling: AutoscalingStatus | None = None
    """What the scaler wants."""
