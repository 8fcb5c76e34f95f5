"""What both scalers share: what they scale, how fast, and what keeps one from being made."""

from __future__ import annotations

from dataclasses import dataclass

from quire_operator.api import LLMService
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.engines import engine_of
from quire_operator.builders.identity import Manifest
from quire_operator.builders.scaling_queries import latency_milliseconds, waiting_requests
from quire_operator.builders.workload import workload_reference

SUFFIX = "scaler"
"""NAME-scaler is the ScaledObject or the HorizontalPodAutoscaler."""

BACKENDS = {"keda": "ScaledObject", "hpa": "HorizontalPodAutoscaler"}
"""Kind of the scaler by `spec.autoscaling.backend`."""

_SLOWLY: Manifest = {
    # a model takes minutes to load, so that more pods a minute would only answer the same queue again
    "scaleUp": {
        "stabilizationWindowSeconds": 30,
        "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
    },
    "scaleDown": {
        "stabilizationWindowSeconds": 300,
        "policies": [{"type": "Pods", "value": 1, "periodSeconds": 120}],
    },
}


@dataclass(frozen=True)
class Obstacle:
    """Why there is no scaler though the spec asks for one."""

    reason: str
    message: str


def wants_scaler(service: LLMService, circumstances: Circumstances, backend: str) -> bool:
    """Whether a scaler of `backend` is to be there now. One that it replaces goes first: two would fight."""
    scaling = service.spec.autoscaling
    if scaling is None or service.spec.suspend or scaling.backend != backend or circumstances.scalers_leaving:
        return False
    return obstacle(service, circumstances) is None


def obstacle(service: LLMService, circumstances: Circumstances) -> Obstacle | None:
    """What somebody has to do before the service can be scaled; None where nothing is in the way."""
    scaling = service.spec.autoscaling
    if scaling is None:
        return None
    if scaling.backend == "keda" and not circumstances.capabilities.keda:
        return Obstacle("KedaMissing", "the cluster knows no ScaledObject: install KEDA, or write backend: hpa")
    lacking = []
    if scaling.queue is not None and waiting_requests(service) is None:
        lacking.append("queueDepth")
    if scaling.latency is not None and latency_milliseconds(service, scaling.latency) is None:
        lacking.append("latency")
    if lacking:
        fields = " and ".join(f"spec.autoscaling.{field}" for field in lacking)
        text = f"engine {engine_of(service).name} tells no metric for {fields}: write spec.autoscaling.triggers instead"
        return Obstacle("MetricUnknown", text)
    asks = scaling.queue is not None or scaling.latency is not None
    if scaling.backend == "keda" and asks and prometheus_address(service, circumstances) is None:
        text = (
            "it is not known where Prometheus is: set spec.autoscaling.prometheus.serverAddress, such as "
            "http://prometheus.monitoring.svc:9090, or the operator's --prometheus-address"
        )
        return Obstacle("PrometheusUnknown", text)
    return None


def prometheus_address(service: LLMService, circumstances: Circumstances) -> str | None:
    """The service's own Prometheus, else the operator's default; None without either."""
    scaling = service.spec.autoscaling
    own = scaling.prometheus.server_address if scaling is not None and scaling.prometheus is not None else None
    return own or circumstances.settings.prometheus_address or None


def behavior(service: LLMService) -> Manifest:
    """How fast replicas come and go. What the spec gives replaces the default as a whole."""
    scaling = service.spec.autoscaling
    return _SLOWLY if scaling is None or scaling.behavior is None else scaling.behavior


def with_first_replicas(service: LLMService, circumstances: Circumstances, workload: Manifest) -> Manifest:
    """The workload as it is created: with the count that it starts at where others have it later.

    Without a scaler nothing would ever wake it from zero. In the place of another, it starts with as many as that has.
    """
    scaling, count = service.spec.autoscaling, circumstances.replaced_replicas
    if workload["kind"] != workload_reference(service)["kind"] or "replicas" in workload["spec"]:
        return workload
    if count is None and scaling is not None:
        count = scaling.first_replicas
        if obstacle(service, circumstances) is not None:
            count = max(1, count)
    if count is None:
        return workload
    return {**workload, "spec": {**workload["spec"], "replicas": count}}
