"""What autoscaling becomes: a ScaledObject or a HorizontalPodAutoscaler, and what keeps either from being made."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from quire_operator.api.autoscaling import Latency
from quire_operator.builders.circumstances import EVERYTHING, Capabilities, Circumstances
from quire_operator.builders.desired import desired_objects
from quire_operator.builders.engines import engine_of
from quire_operator.builders.scaling import Obstacle, obstacle, with_first_replicas
from quire_operator.builders.scaling_queries import _pod_names, latency_milliseconds, requests, waiting_requests
from quire_operator.settings import Settings
from tests.operator.conftest import REPOSITORY
from tests.operator.services import service

PROMETHEUS = "http://prometheus.monitoring.svc:9090"
SETTINGS = Settings(engine_image="quire/engine:test", prometheus_address=PROMETHEUS)
THERE = Circumstances(SETTINGS, EVERYTHING)
SCALERS = ("ScaledObject", "HorizontalPodAutoscaler")
CRON = {"type": "cron", "metadata": {"timezone": "UTC", "start": "0 8 * * *", "end": "0 18 * * *"}}
SLEEPY = {"minReplicas": 0, "maxReplicas": 5, "triggers": [CRON]}
LATENCY = {"metric": "timePerOutputToken", "quantile": 0.95, "target": "60ms"}


def children(circumstances: Circumstances = THERE, **spec: Any) -> dict[str, dict[str, Any]]:
    return {child["kind"]: child for child in desired_objects(service(**spec), circumstances)}


def scaled_object(circumstances: Circumstances = THERE, **autoscaling: Any) -> dict[str, Any]:
    found: dict[str, Any] = children(circumstances, autoscaling={"maxReplicas": 5, **autoscaling})["ScaledObject"]
    return found


def triggers(**autoscaling: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = scaled_object(**autoscaling)["spec"]["triggers"]
    return found


def test_a_scaler_bears_the_services_name_and_scales_the_workload() -> None:
    built = scaled_object()
    assert built["metadata"]["name"] == "llama-scaler"
    assert built["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llama"}
    assert "replicas" not in children(autoscaling={"maxReplicas": 5})["Deployment"]["spec"]


def test_queue_depth_is_a_sum_that_the_autoscaler_divides_by_the_target() -> None:
    (trigger,) = triggers(queueDepth={"target": 7})
    assert (trigger["type"], trigger["metricType"], trigger["metadata"]["threshold"]) == (
        "prometheus",
        "AverageValue",
        "7",
    )
    assert trigger["metadata"]["query"] == waiting_requests(service())
    assert trigger["metadata"]["query"].startswith("sum (")


def test_latency_is_a_value_in_milliseconds() -> None:
    (trigger,) = triggers(latency={**LATENCY, "target": "0.5s", "activation": "40ms"})
    metadata = trigger["metadata"]
    assert (trigger["metricType"], metadata["threshold"], metadata["activationThreshold"]) == ("Value", "500", "40")
    assert "vllm:request_time_per_output_token_seconds_bucket" in metadata["query"]
    (first,) = triggers(latency={"metric": "timeToFirstToken", "target": "1.5ms"})
    assert first["metadata"]["threshold"] == "1.5"
    assert "vllm:time_to_first_token_seconds_bucket" in first["metadata"]["query"]


def test_without_any_trigger_the_queue_scales_and_with_one_it_does_only_when_written() -> None:
    assert [t["name"] for t in triggers()] == ["queue-depth"]
    assert [t["name"] for t in triggers(latency=LATENCY)] == ["latency"]
    assert [t["name"] for t in triggers(latency=LATENCY, queueDepth={})] == ["queue-depth", "latency"]
    assert triggers(triggers=[CRON], minReplicas=0) == [CRON]
    assert triggers(triggers=[CRON], queueDepth={})[1:] == [CRON]


def test_lost_series_are_errors_to_every_trigger() -> None:
    *found, _ = triggers(**SLEEPY, queueDepth={}, latency=LATENCY)
    assert [t["metadata"]["ignoreNullValues"] for t in found] == ["false"] * 3


def test_what_may_sleep_is_kept_awake_by_any_request() -> None:
    for sleepy in ({"minReplicas": 0}, {"minReplicas": 2, "idleReplicas": 0}):
        *_, in_use, _ = triggers(**sleepy, queueDepth={}, triggers=[CRON])
        assert (in_use["name"], in_use["metadata"]["activationThreshold"]) == ("in-use", "0")
        assert "vllm:num_requests_running" in in_use["metadata"]["query"]
        assert int(in_use["metadata"]["threshold"]) >= 1_000_000
    assert [t["name"] for t in triggers(minReplicas=1)] == ["queue-depth"]


def test_counts_and_times_are_those_of_the_spec() -> None:
    spec = scaled_object(minReplicas=2, idleReplicas=0, triggers=[CRON], pollingSeconds=5, cooldownSeconds=60)["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"], spec["idleReplicaCount"]) == (2, 5, 0)
    assert (spec["pollingInterval"], spec["cooldownPeriod"], spec["initialCooldownPeriod"]) == (5, 60, 60)
    assert "idleReplicaCount" not in scaled_object()["spec"]


def test_replicas_stay_when_the_scaler_goes() -> None:
    assert scaled_object()["spec"]["advanced"]["restoreToOriginalReplicaCount"] is False


def test_replicas_come_and_go_one_at_a_time_unless_the_spec_says_otherwise() -> None:
    default = scaled_object()["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert default["scaleUp"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 60}]
    assert default["scaleUp"]["stabilizationWindowSeconds"] == 30
    assert default["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 120}]
    assert default["scaleDown"]["stabilizationWindowSeconds"] == 300
    own = {"scaleDown": {"selectPolicy": "Disabled"}}
    assert scaled_object(behavior=own)["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == own


def test_a_fallback_is_only_what_was_asked_for_and_takes_nothing_away() -> None:
    assert "fallback" not in scaled_object()["spec"]
    fallback = scaled_object(fallbackReplicas=2)["spec"]["fallback"]
    assert (fallback["replicas"], fallback["behavior"]) == (2, "currentReplicasIfHigher")


def test_the_services_own_prometheus_comes_before_the_operators() -> None:
    assert triggers()[0]["metadata"]["serverAddress"] == PROMETHEUS
    own = {"serverAddress": "http://thanos:9090", "authenticationRef": {"name": "thanos"}}
    (trigger,) = triggers(prometheus=own)
    assert trigger["metadata"]["serverAddress"] == "http://thanos:9090"
    assert trigger["authenticationRef"] == {"name": "thanos"}


def test_hpa_scales_on_the_metric_of_pods_that_the_adapter_serves() -> None:
    built = children(autoscaling={"backend": "hpa", "minReplicas": 2, "maxReplicas": 6, "queueDepth": {"target": 3}})
    assert "ScaledObject" not in built
    autoscaler = built["HorizontalPodAutoscaler"]
    spec = autoscaler["spec"]
    assert autoscaler["metadata"]["name"] == "llama-scaler"
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 6)
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llama"}
    (metric,) = spec["metrics"]
    assert metric["pods"]["metric"]["name"] == "vllm_num_requests_waiting"
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "3"}
    assert spec["behavior"]["scaleUp"]["policies"][0]["value"] == 1


@pytest.mark.parametrize("engine", [{}, {"type": "vllm", "image": "vllm:v1"}, {"type": "tgi", "image": "tgi:v1"}])
def test_the_charts_rules_serve_the_metric_that_the_hpa_of_each_engine_asks_for(engine: dict[str, Any]) -> None:
    wanted = service(engine=engine, autoscaling={"backend": "hpa", "maxReplicas": 2})
    (autoscaler,) = [c for c in desired_objects(wanted, THERE) if c["kind"] == "HorizontalPodAutoscaler"]
    rules = yaml.safe_load((REPOSITORY / "charts/quire-operator/files/prometheus-adapter-rules.yaml").read_text())
    served = {
        rule["seriesQuery"].partition("{")[0]: rule.get("name", {}).get("as", rule["seriesQuery"].partition("{")[0])
        for rule in rules["rules"]["custom"]
    }
    asked = autoscaler["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert served[str(engine_of(wanted).metrics.waiting)] == asked


def test_an_hpa_needs_no_prometheus_and_waits_for_no_adapter() -> None:
    bare = Circumstances(Settings(engine_image="quire/engine:test"), Capabilities())
    assert "HorizontalPodAutoscaler" in children(bare, autoscaling={"backend": "hpa", "maxReplicas": 2})


@pytest.mark.parametrize("backend", ["keda", "hpa"])
def test_neither_is_made_while_suspended_or_while_a_predecessor_leaves(backend: str) -> None:
    wanted = {"backend": backend, "maxReplicas": 2}
    assert not set(SCALERS) & set(children(autoscaling=wanted, suspend=True))
    leaving = dataclasses.replace(THERE, scalers_leaving=True)
    assert not set(SCALERS) & set(children(leaving, autoscaling=wanted))


def test_a_fixed_number_of_replicas_waits_until_no_scaler_can_set_it_any_more() -> None:
    assert children(replicas=3)["Deployment"]["spec"]["replicas"] == 3
    leaving = dataclasses.replace(THERE, scalers_leaving=True)
    assert "replicas" not in children(leaving, replicas=3)["Deployment"]["spec"]


def in_the_way(circumstances: Circumstances, **autoscaling: Any) -> Obstacle | None:
    wanted = {"maxReplicas": 5, **autoscaling}
    found = obstacle(service(autoscaling=wanted), circumstances)
    kinds = children(circumstances, autoscaling=wanted)
    assert bool(set(SCALERS) & set(kinds)) is (found is None)
    assert "Deployment" in kinds
    return found


def test_without_keda_there_is_no_scaler_and_the_rest_is_made() -> None:
    found = in_the_way(dataclasses.replace(THERE, capabilities=Capabilities()))
    assert found is not None
    assert found.reason == "KedaMissing"
    assert "install KEDA, or write backend: hpa" in found.message


def test_an_unknown_prometheus_is_an_obstacle_only_for_what_asks_it() -> None:
    nowhere = Circumstances(Settings(engine_image="quire/engine:test"), EVERYTHING)
    found = in_the_way(nowhere)
    assert found is not None
    assert found.reason == "PrometheusUnknown"
    assert "spec.autoscaling.prometheus.serverAddress" in found.message
    assert in_the_way(nowhere, triggers=[{"type": "cron", "metadata": {}}]) is None
    assert in_the_way(nowhere, prometheus={"serverAddress": PROMETHEUS}) is None


def test_what_an_engine_does_not_measure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    mute = dataclasses.replace(engine_of(service()).metrics, waiting=None, time_per_output_token=None)
    engine = dataclasses.replace(engine_of(service()), metrics=mute, name="mute")
    for module in ("scaling", "scaling_queries", "autoscaler"):
        monkeypatch.setattr(f"quire_operator.builders.{module}.engine_of", lambda service: engine)
    found = in_the_way(THERE, queueDepth={}, latency=LATENCY)
    assert found == Obstacle(
        "MetricUnknown",
        "engine mute tells no metric for spec.autoscaling.queueDepth and spec.autoscaling.latency: "
        "write spec.autoscaling.triggers instead",
    )
    assert in_the_way(THERE, backend="hpa") is not None


def first_replicas(circumstances: Circumstances = THERE, **spec: Any) -> int | None:
    wanted = service(**spec)
    workload = next(c for c in desired_objects(wanted, circumstances) if c["kind"] == "Deployment")
    found: int | None = with_first_replicas(wanted, circumstances, workload)["spec"].get("replicas")
    return found


def test_a_new_workload_starts_at_what_autoscaling_has_at_least() -> None:
    assert first_replicas(autoscaling={"minReplicas": 3, "maxReplicas": 5}) == 3
    assert first_replicas(autoscaling=SLEEPY) == 0
    assert first_replicas(autoscaling={**SLEEPY, "minReplicas": 2, "idleReplicas": 0}) == 0
    assert first_replicas(replicas=4) == 4
    assert first_replicas() is None


def test_a_new_workload_that_nothing_could_wake_does_not_start_asleep() -> None:
    bare = dataclasses.replace(THERE, capabilities=Capabilities())
    assert first_replicas(bare, autoscaling=SLEEPY) == 1
    assert first_replicas(bare, autoscaling={"minReplicas": 3, "maxReplicas": 5}) == 3


NAMES = st.from_regex(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?", fullmatch=True)


@st.composite
def pod_of(draw: st.DrawFn, name: str) -> str:
    """A name as the Deployment's controller and the API server make it up."""
    digits = "".join(draw(st.lists(st.sampled_from("456789bcdf"), min_size=7, max_size=10)))
    suffix = "".join(draw(st.lists(st.sampled_from("bcdfghjklmnpqrstvwxz2456789"), min_size=5, max_size=5)))
    return f"{name}-{digits}-"[:58] + suffix


@given(st.data())
def test_a_service_sees_its_own_pods_by_their_names_and_no_other_services(data: st.DataObject) -> None:
    name = data.draw(NAMES)
    assert re.fullmatch(_pod_names(name), data.draw(pod_of(name)))
    other = data.draw(st.one_of(NAMES, st.from_regex(r"-?[a-z0-9]{1,10}", fullmatch=True).map(lambda s: name + s)))
    if other != name and len(other) <= 50:
        assert re.fullmatch(_pod_names(name), data.draw(pod_of(other))) is None


def test_queries_name_the_service_and_its_namespace_exactly() -> None:
    latency = Latency.model_validate(LATENCY)
    for query in (waiting_requests(service()), requests(service()), latency_milliseconds(service(), latency)):
        assert query is not None
        assert 'namespace="default",llmservice="llama"' in query
        assert 'namespace="default",pod=~"llama-[a-f0-9]{1,10}-[a-z0-9]{5}"' in query
