"""What the condition Autoscaling says, from what KEDA and the HorizontalPodAutoscaler report."""

from __future__ import annotations

from typing import Any

import pytest

from quire_operator.api import LLMService
from quire_operator.builders.circumstances import EVERYTHING, Capabilities
from quire_operator.builders.scaling import Obstacle
from quire_operator.reconcile.autoscaling import autoscaling_status, judge_autoscaling
from quire_operator.reconcile.changes import Delete, changes
from quire_operator.reconcile.children import Outcome, Problem
from quire_operator.reconcile.conditions import Verdict
from quire_operator.reconcile.observation import Observation
from quire_operator.reconcile.reconciler import _result
from quire_operator.reconcile.scalers import leaving_scalers, stuck_scaler
from tests.operator.services import service

READY = {"type": "Ready", "status": "True", "reason": "ScaledObjectReady"}
TRIGGER_ERROR = {
    "type": "Ready",
    "status": "False",
    "reason": "TriggerError",
    "message": "Triggers defined in ScaledObject are not working correctly",
}
UNREADABLE = {
    "type": "ScalingActive",
    "status": "False",
    "reason": "FailedGetExternalMetric",
    "message": "the HPA was unable to compute the replica count: metric s0-prometheus encountered error",
}
RESTING = {"type": "ScalingActive", "status": "False", "reason": "ScalingDisabled", "message": "replicas is zero"}
ABLE = {"type": "AbleToScale", "status": "True", "reason": "ReadyForNewScale"}


def of(**autoscaling: Any) -> LLMService:
    return service(autoscaling={"minReplicas": 1, "maxReplicas": 4, **autoscaling})


def deployment(replicas: int, available: int) -> dict[str, Any]:
    return {
        "metadata": {"name": "llama", "generation": 1},
        "spec": {"replicas": replicas, "template": {}},
        "status": {"observedGeneration": 1, "availableReplicas": available},
    }


def owned(kind: str, name: str, uid: str) -> dict[str, Any]:
    return {"kind": kind, "name": name, "uid": uid, "controller": True}


def scaler(*conditions: dict[str, Any], name: str = "llama-scaler", annotations: Any = None) -> dict[str, Any]:
    owner = owned("LLMService", "llama", service().metadata.uid)
    metadata = {"name": name, "ownerReferences": [owner], "annotations": annotations or {}}
    return {"metadata": metadata, "status": {"conditions": list(conditions)}}


def kedas(*conditions: dict[str, Any], desired: int = 0) -> dict[str, Any]:
    metadata = {"name": "keda-hpa-llama-scaler", "ownerReferences": [owned("ScaledObject", "llama-scaler", "a")]}
    return {"metadata": metadata, "status": {"conditions": list(conditions), "desiredReplicas": desired}}


def observed(
    scaled_object: Any = None,
    autoscaler: Any = None,
    own: Any = None,
    *,
    replicas: int = 2,
    available: int = 2,
    **rest: Any,
) -> Observation:
    children = {
        ("Deployment", "llama"): deployment(replicas, available),
        ("ScaledObject", "llama-scaler"): scaled_object,
        ("HorizontalPodAutoscaler", "keda-hpa-llama-scaler"): autoscaler,
        ("HorizontalPodAutoscaler", "llama-scaler"): own,
    }
    there = {key: child for key, child in children.items() if child is not None}
    return Observation(there, capabilities=rest.pop("capabilities", EVERYTHING), **rest)


def judged(found: Observation, **autoscaling: Any) -> Verdict:
    verdict = judge_autoscaling(of(**autoscaling), found)
    assert verdict is not None
    assert verdict.type == "Autoscaling"
    return verdict


def reason(found: Observation, **autoscaling: Any) -> tuple[bool, str]:
    verdict = judged(found, **autoscaling)
    return verdict.holds, verdict.reason


def test_without_autoscaling_there_is_nothing_to_say() -> None:
    assert judge_autoscaling(service(), observed()) is None
    assert autoscaling_status(service(), observed()) is None


def test_a_scaler_at_work_tells_what_it_wants_and_between_which_bounds() -> None:
    found = observed(scaler(READY), kedas(ABLE, desired=3))
    assert reason(found) == (True, "Active")
    assert judged(found).message == "3 replicas are wanted, between 1 and 4"
    status = autoscaling_status(of(), found)
    assert status is not None
    assert (status.backend, status.desired) == ("keda", 3)


def test_at_zero_it_is_idle_and_the_resting_autoscaler_no_fault() -> None:
    found = observed(scaler(READY), kedas(ABLE, RESTING, desired=1), replicas=0, available=0)
    assert reason(found, minReplicas=0, triggers=[{"type": "cron"}]) == (True, "Idle")
    status = autoscaling_status(of(), found)
    assert status is not None
    assert status.desired == 0


def test_at_the_maximum_with_more_asked_for_the_field_to_raise_is_named() -> None:
    limited = {"type": "ScalingLimited", "status": "True", "reason": "TooManyReplicas"}
    found = observed(scaler(READY), kedas(ABLE, limited, desired=4), replicas=4, available=4)
    assert reason(found) == (True, "AtMaximum")
    assert "spec.autoscaling.maxReplicas" in judged(found).message


@pytest.mark.parametrize("ready", [READY, TRIGGER_ERROR])
def test_metrics_that_cannot_be_read_are_told_in_the_autoscalers_words_with_what_is_held(ready: dict[str, Any]) -> None:
    found = observed(scaler(ready), kedas(ABLE, UNREADABLE, desired=2))
    assert reason(found) == (False, "MetricsUnavailable")
    message = judged(found).message
    assert "metric s0-prometheus encountered error" in message
    assert "replicas are held at 2" in message


def test_behind_a_network_policy_the_prometheus_that_it_keeps_out_is_thought_of() -> None:
    found = observed(scaler(READY), kedas(ABLE, UNREADABLE, desired=2))
    assert "monitoringNamespaces" not in judged(found).message
    fenced = service(autoscaling={"maxReplicas": 4}, security={"networkPolicy": {"allowedNamespaces": []}})
    verdict = judge_autoscaling(fenced, found)
    assert verdict is not None
    assert "monitoringNamespaces" in verdict.message


def test_without_an_autoscalers_words_there_are_kedas() -> None:
    found = observed(scaler(TRIGGER_ERROR))
    assert "Triggers defined in ScaledObject are not working correctly" in judged(found).message
    partly = {"type": "Ready", "status": "Unknown", "reason": "PartialTriggerError", "message": "Some triggers"}
    assert reason(observed(scaler(partly), kedas(ABLE, desired=2))) == (False, "MetricsUnavailable")


def test_a_fallback_hides_the_outage_from_everybody_but_the_condition() -> None:
    fallback = {"type": "Fallback", "status": "True", "message": "At least one trigger is falling back"}
    found = observed(scaler(READY, fallback), kedas(ABLE, desired=2))
    assert reason(found, fallbackReplicas=2) == (False, "MetricsUnavailable")
    message = judged(found, fallbackReplicas=2).message
    assert "At least one trigger is falling back" in message
    assert "at least spec.autoscaling.fallbackReplicas are kept, which is 2" in message


def test_a_service_that_still_loads_its_model_has_nothing_to_measure() -> None:
    found = observed(scaler(TRIGGER_ERROR), kedas(ABLE, UNREADABLE), available=0)
    assert reason(found) == (False, "ScalerPending")


def test_a_scaled_object_that_nobody_has_looked_at_points_to_kedas_operator() -> None:
    for untouched in (scaler(), scaler({"type": "Ready", "status": "Unknown"})):
        assert reason(observed(untouched)) == (False, "ScalerPending")
        assert "KEDA's operator" in judged(observed(untouched)).message
    assert reason(observed()) == (False, "ScalerPending")
    assert "the controller manager" in judged(observed(own=scaler()), backend="hpa").message


def test_what_keda_cannot_work_with_is_told_in_its_words() -> None:
    failed = {"type": "Ready", "status": "False", "reason": "ScaledObjectCheckFailed", "message": "no such trigger"}
    found = observed(scaler(failed))
    assert reason(found) == (False, "ScalerFailing")
    assert "no such trigger" in judged(found).message


def test_an_autoscaler_that_cannot_scale_is_told_in_its_words() -> None:
    unable = {"type": "AbleToScale", "status": "False", "reason": "FailedUpdateScale", "message": "quota is used up"}
    assert reason(observed(scaler(READY), kedas(unable))) == (False, "ScalerFailing")
    ambiguous = {**unable, "reason": "AmbiguousSelector", "message": "pods are controlled by multiple HPAs: [mine]"}
    found = observed(scaler(READY), kedas(ambiguous))
    assert reason(found) == (False, "ConflictingScaler")
    assert "multiple HPAs: [mine]" in judged(found).message


@pytest.mark.parametrize(
    ("annotation", "value"),
    [("paused", "true"), ("paused-replicas", "0"), ("paused-scale-in", "true"), ("paused", "")],
)
def test_a_pause_is_told_with_the_command_that_ends_it(annotation: str, value: str) -> None:
    name = f"autoscaling.keda.sh/{annotation}"
    found = observed(scaler(READY, annotations={name: value}))
    assert reason(found) == (False, "Paused")
    assert f"kubectl annotate scaledobject/llama-scaler -n default {name}-" in judged(found).message


def test_a_pause_that_is_switched_off_is_none() -> None:
    annotations = {"autoscaling.keda.sh/paused": "False", "autoscaling.keda.sh/paused-scale-in": "0"}
    assert reason(observed(scaler(READY, annotations=annotations), kedas(ABLE))) == (True, "Active")


def test_what_is_in_the_way_comes_first_and_says_what_runs_meanwhile() -> None:
    found = observed(scaling_obstacle=Obstacle("KedaMissing", "install KEDA"))
    assert reason(found) == (False, "KedaMissing")
    assert judged(found).message == "install KEDA. Meanwhile replicas are held at 2"
    refused = {("ScaledObject", "llama-scaler"): Problem("ConflictingScaler", "already managed")}
    assert reason(observed(aside=refused)) == (False, "ConflictingScaler")


def test_an_hpa_without_an_adapter_is_told_of_the_rules() -> None:
    bare = Capabilities(keda=True)
    found = observed(own=scaler(ABLE), capabilities=bare)
    assert reason(found, backend="hpa") == (False, "CustomMetricsMissing")
    assert "files/prometheus-adapter-rules.yaml" in judged(found, backend="hpa").message
    assert reason(observed(own=scaler(ABLE)), backend="hpa") == (True, "Active")


def test_the_scalers_that_leave_are_those_of_the_other_backend_and_kedas_own_among_them() -> None:
    both = observed(scaler(READY), kedas(ABLE), scaler(ABLE)).children
    own, by_keda = ("HorizontalPodAutoscaler", "llama-scaler"), ("HorizontalPodAutoscaler", "keda-hpa-llama-scaler")
    scaled_object = ("ScaledObject", "llama-scaler")
    assert leaving_scalers(of(backend="keda"), both) == [own]
    assert set(leaving_scalers(of(backend="hpa"), both)) == {scaled_object, by_keda}
    assert set(leaving_scalers(service(replicas=2), both)) == {own, scaled_object, by_keda}
    suspended = service(autoscaling={"maxReplicas": 2}, suspend=True)
    assert set(leaving_scalers(suspended, both)) == {own, scaled_object, by_keda}


def test_a_strangers_autoscaler_that_bears_our_label_is_not_waited_for() -> None:
    stranger = {"metadata": {"name": "mine", "ownerReferences": []}, "status": {}}
    other = {"metadata": {"name": "x", "ownerReferences": [owned("ScaledObject", "theirs", "b")]}, "status": {}}
    children = {("HorizontalPodAutoscaler", "mine"): stranger, ("HorizontalPodAutoscaler", "x"): other}
    assert leaving_scalers(service(), children) == []


def test_a_scaler_that_was_orphaned_is_removed_like_one_of_our_own() -> None:
    labels = {"serving.quire.dev/llmservice": "llama", "app.kubernetes.io/managed-by": "quire-operator"}
    orphan, key = {"metadata": {"name": "llama-scaler", "labels": labels}}, ("ScaledObject", "llama-scaler")
    assert leaving_scalers(service(replicas=2), {key: orphan}) == [key]
    assert changes(service(replicas=2), [], {key: orphan}, {}) == [Delete("ScaledObject", orphan)]
    claim = ("PersistentVolumeClaim", "llama-cache")
    assert changes(service(), [], {claim: orphan}, {}) == []


def test_a_scaler_that_was_deleted_and_does_not_go_is_told_with_its_finalizer() -> None:
    stuck = scaler(READY)
    stuck["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["finalizer.keda.sh"]}
    children = observed(stuck).children
    assert stuck_scaler(service(replicas=2), children, "2026-01-01T00:00:20Z") is None  # KEDA may be at it
    found = stuck_scaler(service(replicas=2), children, "2026-01-01T00:01:00Z")
    assert found is not None
    verdict = judge_autoscaling(service(replicas=2), observed(stuck, scaling_obstacle=found))
    assert verdict is not None
    assert (verdict.holds, verdict.reason) == (False, "ScalerLeaving")
    assert "finalizer.keda.sh" in verdict.message
    assert "kubectl patch scaledobject/llama-scaler -n default" in verdict.message


def test_a_scaler_that_stays_refused_is_tried_less_and_less_often() -> None:
    refused = Outcome(aside={("ScaledObject", "llama-scaler"): Problem("ConflictingScaler", "")})
    delays = [_result(None, refused, False, None, seconds).again_after for seconds in (0.0, 40.0, 4000.0)]
    assert delays == [10.0, 40.0, 300.0]
