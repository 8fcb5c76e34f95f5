"""The ScaledObject, by which KEDA scales: it makes a HorizontalPodAutoscaler of its own, and goes to and from zero."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.api.autoscaling import Autoscaling
from quire_operator.api.duration import parse_duration
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.identity import Manifest, child_metadata
from quire_operator.builders.scaling import SUFFIX, behavior, prometheus_address, wants_scaler
from quire_operator.builders.scaling_queries import latency_milliseconds, requests, waiting_requests
from quire_operator.builders.workload import workload_reference

_FAILURES_BEFORE_FALLBACK = 3
_OUT_OF_REACH = 1_000_000
"""Target of a trigger that keeps a service awake, and never asks for a second replica."""


def build_scaled_object(service: LLMService, circumstances: Circumstances) -> Manifest | None:
    """NAME-scaler with backend keda; none while suspended, and where something keeps KEDA from scaling."""
    scaling = service.spec.autoscaling
    if scaling is None or not wants_scaler(service, circumstances, "keda"):
        return None
    spec: Manifest = {
        "scaleTargetRef": workload_reference(service),
        "pollingInterval": scaling.polling_seconds,
        "cooldownPeriod": scaling.cooldown_seconds,
        # what had a fixed number of replicas so far has no last use, and would go to zero at once
        "initialCooldownPeriod": scaling.cooldown_seconds,
        "minReplicaCount": scaling.min_replicas,
        "maxReplicaCount": scaling.max_replicas,
        "advanced": {
            "restoreToOriginalReplicaCount": False,
            "horizontalPodAutoscalerConfig": {"behavior": behavior(service)},
        },
        "triggers": _triggers(service, scaling, prometheus_address(service, circumstances) or ""),
    }
    if scaling.idle_replicas is not None:
        spec["idleReplicaCount"] = scaling.idle_replicas
    if scaling.fallback_replicas is not None:
        spec["fallback"] = {
            "failureThreshold": _FAILURES_BEFORE_FALLBACK,
            "replicas": scaling.fallback_replicas,
            # a plain number would take replicas away from a service that has more
            "behavior": "currentReplicasIfHigher",
        }
    metadata = child_metadata(service, SUFFIX)
    return {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": metadata, "spec": spec}


def _triggers(service: LLMService, scaling: Autoscaling, address: str) -> list[Manifest]:
    found, depth, latency = [], scaling.queue, scaling.latency
    if depth is not None:
        metadata = {"query": waiting_requests(service), "threshold": str(depth.target)}
        metadata["activationThreshold"] = str(depth.activation or 0)
        found.append(_trigger(scaling, address, "queue-depth", "AverageValue", metadata))
    if latency is not None:
        metadata = {"query": latency_milliseconds(service, latency), "threshold": _milliseconds(latency.target)}
        metadata["activationThreshold"] = _milliseconds(latency.activation) if latency.activation else "0"
        found.append(_trigger(scaling, address, "latency", "Value", metadata))
    in_use = requests(service)
    if found and scaling.may_sleep and in_use is not None:
        # nobody waits at a replica that can just keep up, and it must not go all the same
        metadata = {"query": in_use, "threshold": str(_OUT_OF_REACH), "activationThreshold": "0"}
        found.append(_trigger(scaling, address, "in-use", "AverageValue", metadata))
    return [*found, *scaling.triggers]


def _trigger(
    scaling: Autoscaling, address: str, name: str, metric_type: str, metadata: dict[str, str | None]
) -> Manifest:
    # series that are lost are an error, on which replicas are held, and not a zero
    trigger: Manifest = {
        "type": "prometheus",
        "name": name,
        "metricType": metric_type,
        "metadata": {"serverAddress": address, "ignoreNullValues": "false", **metadata},
    }
    if scaling.prometheus is not None and scaling.prometheus.authentication_ref is not None:
        trigger["authenticationRef"] = {"name": scaling.prometheus.authentication_ref.name}
    return trigger


def _milliseconds(text: str) -> str:
    return f"{parse_duration(text) * 1000:.6f}".rstrip("0").rstrip(".")
