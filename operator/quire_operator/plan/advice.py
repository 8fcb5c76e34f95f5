"""What could be better about a service that is served all the same. Advice changes no condition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quire_engine.memory_plan.quantization import ROUNDED
from quire_operator.api import Advice, HubSource, LLMService, PlanStatus, Spec, parse_source
from quire_operator.plan.claim_modes import ClaimFacts, larger_than_asked, one_node_only

SILENCE = "serving.quire.dev/silence-advice"
"""Annotation of an LLMService: reasons, separated by commas, of which it wants to hear no more; or `all`."""

_SHORT_DRAIN_SECONDS = 120
_HEADROOM = 0.95
_FEW_REQUESTS = 2
_FAR_ABOVE = 4


@dataclass(frozen=True)
class Lengths:
    """In tokens of prompt and answer."""

    limit: int | None = None
    """Of a request; None where it is not known."""

    longest: int | None = 0
    """That was asked for, or a little more; 0 where nothing tells, None where that is not known yet."""


UNKNOWN = Lengths()


def advice_of(
    service: LLMService,
    plan: PlanStatus | None,
    replicas: int | None = None,
    claim: ClaimFacts | None = None,
    lengths: Lengths = UNKNOWN,
) -> list[Advice]:
    """Advice, without what the service has silenced. `replicas` are wanted, where the spec leaves it open."""
    wanted = 1 if replicas is None else replicas
    of_claim = (
        (one_node_only(service.spec, claim, wanted), larger_than_asked(service.spec, claim))
        if claim is not None
        else ()
    )
    silenced = {reason.strip() for reason in service.metadata.annotations.get(SILENCE, "").split(",")}
    found = [
        *_of_replicas(service.spec, wanted),
        *filter(None, of_claim),
        *_of_spec(service.spec),
        *_of_plan(service.spec, plan),
        *_of_use(service, lengths),
    ]
    return [advice for advice in found if not {advice.reason, "all"} & silenced]


def _of_replicas(spec: Spec, replicas: int) -> Iterator[Advice]:
    scaler = spec.autoscaling
    most = scaler.max_replicas if scaler is not None else replicas if spec.replicas is None else spec.replicas
    if most == 1:
        text = "there is one replica, so nothing serves while its node is away or it starts anew: take 2 or more"
        yield Advice(reason="SingleReplica", message=text)


def _of_spec(spec: Spec) -> Iterator[Advice]:
    rollout, utilization = spec.rollout, spec.engine.gpu_memory_utilization
    if isinstance(parse_source(spec.model.source), HubSource) and spec.cache is None:
        text = "each new pod downloads the model from the hub, and cannot start while that is away: set spec.cache"
        yield Advice(reason="NoCache", message=text)
    if rollout.drain_seconds < _SHORT_DRAIN_SECONDS:
        text = (
            f"spec.rollout.drainSeconds is {rollout.drain_seconds}: answers that take longer are cut off when a pod "
            f"goes. {_SHORT_DRAIN_SECONDS} or more costs nothing, as an idle pod goes at once"
        )
        yield Advice(reason="ShortDrain", message=text)
    if rollout.strategy == "Recreate":
        text = "spec.rollout.strategy is Recreate: nothing serves during a rollout. RollingUpdate has no such gap"
        yield Advice(reason="UnavailableDuringRollout", message=text)
    elif str(rollout.max_unavailable) not in ("0", "0%"):
        text = (
            f"spec.rollout.maxUnavailable is {rollout.max_unavailable}: fewer replicas serve during a rollout. With 0, "
            "and maxSurge 1, all do, for the GPUs of one more pod"
        )
        yield Advice(reason="UnavailableDuringRollout", message=text)
    if utilization > _HEADROOM:
        text = (
            f"spec.engine.gpuMemoryUtilization is {utilization:g}: what the driver and libraries take beside the plan "
            f"may not fit, and the engine then ends as OutOfMemory. {_HEADROOM:g} or less leaves room"
        )
        yield Advice(reason="NoMemoryHeadroom", message=text)


def _of_plan(spec: Spec, plan: PlanStatus | None) -> Iterator[Advice]:
    if plan is None or plan.tensor is None:
        return
    fits, tensor, smallest = plan.verdict == "Fits", plan.tensor, plan.smallest_tensor
    requests, longest = plan.full_length_requests, plan.max_model_len
    if fits and requests is not None and requests < _FEW_REQUESTS:
        where = "spec.model.maxModelLen" if spec.model.max_model_len is not None else "the model's own length"
        text = (
            f"{where} is {longest} tokens, and the KV cache holds one such request: a long one has all others wait. "
            "Set spec.model.maxModelLen to what is asked for, or take more memory"
        )
        yield Advice(reason="LongContext", message=text)
    if fits and smallest is not None and smallest < tensor:
        text = (
            f"spec.parallelism.tensor is {tensor}, and {smallest} would hold the model: keep it if answers must come "
            "faster, or more of them at once; else lower it, and serve more replicas on the same GPUs"
        )
        yield Advice(reason="TensorTooLarge", message=text)
    if not fits and smallest is not None and smallest > tensor:
        over_nodes = next((way for way in plan.suggestions if "spec.parallelism.nodes" in way), None)
        way = over_nodes or f"set it to {smallest}"
        text = f"spec.parallelism.tensor is {tensor}, and the model needs {smallest}: {way}"
        yield Advice(reason="TensorTooSmall", message=text)
    if plan.quantized_tensor is not None:
        stages = plan.pipeline or 1
        needed = _gpus((tensor if fits else smallest or tensor) * stages)
        needed = needed if fits or smallest is not None else f"more than {needed}"
        how = (
            f"set spec.model.quantization to {plan.quantized_to}, or look for"
            if plan.quantized_to in ROUNDED
            else "look for"
        )
        fewer = _gpus(plan.quantized_tensor * stages)
        text = (
            f"quantized to {plan.quantized_to}, the model would take {fewer} a replica, where it takes {needed} "
            f"as it is: {how} such a checkpoint of it"
        )
        yield Advice(reason="QuantizationWouldFit", message=text)


def _of_use(service: LLMService, lengths: Lengths) -> Iterator[Advice]:
    limit, longest = lengths.limit, lengths.longest
    if longest is None:
        # as after a restart: what was said of this very spec stays, or it would be told once more
        if service.status.observed_generation == service.metadata.generation:
            yield from (advice for advice in service.status.advice if advice.reason == "UnusedLength")
        return
    if limit is None or not longest or limit < _FAR_ABOVE * longest:
        return
    where = "spec.model.maxModelLen" if service.spec.model.max_model_len is not None else "the model's own length"
    text = (
        f"{where} is {limit} tokens, and no request of the last days took more than {longest}: with a "
        "spec.model.maxModelLen nearer to that a request that goes astray ends sooner, and a smaller GPU may do"
    )
    yield Advice(reason="UnusedLength", message=text)


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
