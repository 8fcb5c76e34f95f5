"""The condition Autoscaling: whether replicas follow the load, and why they do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire_operator.api import LLMService
from quire_operator.api.autoscaling import Autoscaling
from quire_operator.api.status import AutoscalingStatus
from quire_operator.builders.scaling import BACKENDS, SUFFIX
from quire_operator.kubeapi.client import Object
from quire_operator.reconcile.conditions import Verdict
from quire_operator.reconcile.observation import Observation
from quire_operator.reconcile.scalers import autoscaler_of, scaler_of
from quire_operator.reconcile.workloads import condition

TYPE = "Autoscaling"
_PAUSED_AT = "autoscaling.keda.sh/paused-replicas"
_PAUSING = tuple(f"autoscaling.keda.sh/{name}" for name in ("paused", "paused-scale-in", "paused-scale-out"))
"""Annotations of a ScaledObject: true or false, while the one before holds a number."""


def judge_autoscaling(service: LLMService, observation: Observation) -> Verdict | None:
    """None without spec.autoscaling, but for a scaler that was deleted and does not go."""
    scaling = service.spec.autoscaling
    held = f"replicas are held at {observation.replicas(service).wanted}"
    obstacle = observation.scaling_obstacle
    if obstacle is not None:
        return Verdict(TYPE, False, obstacle.reason, f"{obstacle.message}. Meanwhile {held}")
    if scaling is None:
        return None
    problem = observation.aside.get((BACKENDS[scaling.backend], f"{service.metadata.name}-{SUFFIX}"))
    if problem is not None:
        return Verdict(TYPE, False, problem.reason, f"{problem.message}. Meanwhile {held}")
    if scaling.backend == "hpa" and not observation.capabilities.custom_metrics:
        text = (
            "the cluster serves no metrics of pods: install prometheus-adapter with the chart's "
            f"files/prometheus-adapter-rules.yaml, or write backend: keda. Meanwhile {held}"
        )
        return Verdict(TYPE, False, "CustomMetricsMissing", text)
    return _judge_scaler(service, scaling, observation, held)


def autoscaling_status(service: LLMService, observation: Observation) -> AutoscalingStatus | None:
    """What the scaler asks for; None without spec.autoscaling."""
    scaling = service.spec.autoscaling
    if scaling is None or service.spec.suspend:
        return None
    return AutoscalingStatus(backend=scaling.backend, desired=_desired(service, observation))


def _desired(service: LLMService, observation: Observation) -> int:
    """A HorizontalPodAutoscaler has no opinion about zero, nor before it has read metrics for the first time."""
    wanted = observation.replicas(service).wanted
    status = (autoscaler_of(service, observation.children) or {}).get("status") or {}
    return int(status.get("desiredReplicas") or wanted) if wanted else 0


def _judge_scaler(service: LLMService, scaling: Autoscaling, observation: Observation, held: str) -> Verdict:
    scaler = scaler_of(service, observation.children)
    autoscaler = autoscaler_of(service, observation.children) or {}
    if scaler is None:
        return Verdict(TYPE, False, "ScalerPending", f"there is no scaler yet. Meanwhile {held}")
    name, namespace = f"{BACKENDS[scaling.backend]} {scaler['metadata']['name']}", service.metadata.namespace
    pausing = _pausing(scaler)
    if pausing is not None:
        remove = f"`kubectl annotate scaledobject/{scaler['metadata']['name']} -n {namespace} {pausing}-`"
        return Verdict(TYPE, False, "Paused", f"{name} is paused by its annotation: {remove} has it scale again")
    ready, able = condition(scaler, "Ready"), condition(autoscaler, "AbleToScale")
    if able.get("reason") == "AmbiguousSelector":
        text = f"another scaler scales the same pods: {able.get('message')}. Remove it, or leave spec.autoscaling out"
        return Verdict(TYPE, False, "ConflictingScaler", text)
    if ready.get("status") == "False" and ready.get("reason") != "TriggerError":
        text = f"{name} does not work: {ready.get('message')}. Correct what it names in spec.autoscaling"
        return Verdict(TYPE, False, "ScalerFailing", f"{text}. Meanwhile {held}")
    if able.get("status") == "False":
        return Verdict(TYPE, False, "ScalerFailing", f"{name} cannot scale: {able.get('message')}. Meanwhile {held}")
    if not (ready if scaling.backend == "keda" else able).get("reason"):
        whom = "KEDA's operator" if scaling.backend == "keda" else "the controller manager"
        return Verdict(TYPE, False, "ScalerPending", f"nothing has acted on {name} yet: if this stays, see {whom}")
    fallback = condition(scaler, "Fallback")
    words = _unavailable(ready, condition(autoscaler, "ScalingActive"), fallback)
    replicas = observation.replicas(service)
    if words is None:
        return _scaling(scaling, _desired(service, observation), autoscaler)
    if replicas.wanted and not replicas.available:
        text = f"no replica serves yet, so that there is nothing to measure. Meanwhile {held}"
        return Verdict(TYPE, False, "ScalerPending", text)
    if fallback.get("status") == "True":
        held = f"at least spec.autoscaling.fallbackReplicas are kept, which is {scaling.fallback_replicas}"
    text = f"metrics cannot be read: {words}. Until they can, {held}. Check Prometheus, and whether it scrapes the pods"
    if service.spec.security.network_policy is not None:
        text += (
            ": spec.security.networkPolicy lets it in from namespaces of its allowedNamespaces and of the chart's "
            "monitoringNamespaces alone"
        )
    return Verdict(TYPE, False, "MetricsUnavailable", text)


def _scaling(scaling: Autoscaling, desired: int, autoscaler: Mapping[str, Any]) -> Verdict:
    limits = f"between {scaling.min_replicas} and {scaling.max_replicas}"
    if desired == 0:
        return Verdict(TYPE, True, "Idle", "no replica is wanted until a trigger says so")
    if condition(autoscaler, "ScalingLimited").get("reason") == "TooManyReplicas":
        text = f"{desired} replicas are wanted, and metrics ask for more: spec.autoscaling.maxReplicas allows no more"
        return Verdict(TYPE, True, "AtMaximum", text)
    return Verdict(TYPE, True, "Active", f"{desired} replicas are wanted, {limits}")


def _unavailable(ready: Mapping[str, Any], active: Mapping[str, Any], fallback: Mapping[str, Any]) -> str | None:
    """Why metrics cannot be read; None when they can. At zero replicas the HorizontalPodAutoscaler rests."""
    if fallback.get("status") == "True":  # which hides it from everything else
        return str(fallback.get("message", "")).rstrip(".")
    if active.get("status") == "False" and active.get("reason") != "ScalingDisabled":
        return str(active.get("message", "")).rstrip(".")
    if ready.get("reason") in ("TriggerError", "PartialTriggerError"):
        return str(ready.get("message", "")).rstrip(".")
    return None


def _pausing(scaler: Object) -> str | None:
    annotations = scaler["metadata"].get("annotations") or {}
    if _PAUSED_AT in annotations:
        return _PAUSED_AT
    return next((name for name in _PAUSING if annotations.get(name, "false").lower() not in ("false", "f", "0")), None)
