"""Replicas follow the load: by KEDA and by a plain HorizontalPodAutoscaler, up, down, to zero, and through outages."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import yaml

from e2e.cluster.addons.adapter import Adapter
from e2e.cluster.addons.prometheus import IN_CLUSTER_URL, Prometheus
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.locations import REPOSITORY
from e2e.llmservice import LLMService, tiny_spec, until
from e2e.load import Load, LongStream

ADAPTER_RULES = REPOSITORY / "charts/quire-operator/files/prometheus-adapter-rules.yaml"
AT_ONCE = {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 4, "periodSeconds": 1}]}
SOON = {**AT_ONCE, "stabilizationWindowSeconds": 6}
"""A queue that is empty for the moment of one scrape takes no replica away."""

ONE_AT_A_TIME: dict[str, Any] = {"maxNumSeqs": 1}
"""All but one of the requests of a pod wait."""

CLIENTS, TOKENS = 8, 120
"""At one pod, 7 of them wait; at three, 5 or more, since answers take longer than the next question."""


def scaled_spec(autoscaling: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A spec whose engine works on one request at a time, and whose scaler acts at once."""
    spec = tiny_spec(engine=ONE_AT_A_TIME, **changes)
    del spec["replicas"]
    common = {"maxReplicas": 3, "behavior": {"scaleUp": AT_ONCE, "scaleDown": SOON}}
    return spec | {"autoscaling": {**common, **autoscaling}}


def by_keda(**autoscaling: Any) -> dict[str, Any]:
    return scaled_spec(
        {"pollingSeconds": 1, "cooldownSeconds": 3, "prometheus": {"serverAddress": IN_CLUSTER_URL}, **autoscaling}
    )


def replicas(service: LLMService) -> int:
    """What the Deployment's spec asks for."""
    path = "jsonpath={.spec.replicas}"
    return int(service.kubectl("get", "deployment", service.name, "-n", service.namespace, "-o", path))


def condition(service: LLMService, reason: str, seconds: float = 60) -> dict[str, Any]:
    """The condition Autoscaling, once it has this reason."""

    def found() -> dict[str, Any] | None:
        now = service.condition("Autoscaling")
        return now if now.get("reason") == reason else None

    try:
        condition: dict[str, Any] = until(f"Autoscaling {reason}", found, seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{service.condition('Autoscaling')}\n{service.describe()}") from None
    return condition


def scalers(service: LLMService) -> list[str]:
    """Names of the ScaledObjects and HorizontalPodAutoscalers of its namespace."""
    kinds, names = "scaledobjects,horizontalpodautoscalers", "jsonpath={.items[*].metadata.name}"
    return service.kubectl("get", kinds, "-n", service.namespace, "-o", names).split()


@contextlib.contextmanager
def watched(service: LLMService) -> Iterator[list[int]]:
    """Every number of replicas that the Deployment's spec has meanwhile."""
    path = 'jsonpath={.spec.replicas}{"\\n"}'
    command = ("get", "deployment", service.name, "-n", service.namespace, "--watch", "-o", path)
    process = service.kubectl.start(*command)
    seen: list[int] = []
    assert process.stdout is not None
    output = process.stdout
    reader = threading.Thread(target=lambda: seen.extend(int(line) for line in output if line.strip()), daemon=True)
    reader.start()
    try:
        until("the first state seen", lambda: seen)
        yield seen
    finally:
        process.terminate()
        process.wait()
        reader.join(10)


@pytest.fixture
def demand(prometheus: Prometheus) -> Iterator[str]:
    """The name of a series that no pod exposes."""
    name = f"demand_{uuid4().hex[:8]}"
    yield name
    prometheus.remove_rules(name)


def demand_is(prometheus: Prometheus, series: str, value: int) -> None:
    prometheus.load_rules(series, [{"name": series, "rules": [{"record": series, "expr": f"vector({value})"}]}])


@pytest.mark.usefixtures("keda", "prometheus", "operator")
def test_a_queue_adds_replicas_and_they_go_with_it_without_a_failed_request(kubectl: Kubectl, namespace: str) -> None:
    service = LLMService(kubectl, namespace, "busy")
    service.apply(by_keda(queueDepth={"target": 2}))
    service.wait_ready()
    assert replicas(service) == 1
    condition(service, "Active")
    with Load(service, clients=2) as steady:
        with Load(service, clients=CLIENTS, max_tokens=TOKENS) as burst:
            until("three replicas", lambda: replicas(service) == 3, 90)
            condition(service, "AtMaximum")
            service.wait_ready()
            until("every client answered", lambda: burst.answered >= CLIENTS)
        until("one replica", lambda: replicas(service) == 1 and len(service.pods()) == 1, 120)
        before = steady.answered
        until("the last one answers", lambda: steady.answered >= before + 4)
    assert burst.failures == []
    assert steady.failures == []


@pytest.mark.usefixtures("keda", "operator")
def test_fixed_replicas_under_load_never_drop_and_stay_while_prometheus_is_away(
    kubectl: Kubectl, namespace: str, prometheus: Prometheus
) -> None:
    service = LLMService(kubectl, namespace, "handed")
    service.apply(tiny_spec(engine=ONE_AT_A_TIME, replicas=3))
    service.wait_ready()
    with Load(service, clients=CLIENTS, max_tokens=TOKENS) as load, watched(service) as seen:
        until("every client answered", lambda: load.answered >= CLIENTS)
        service.apply(by_keda(minReplicas=2, queueDepth={"target": 1}))
        condition(service, "AtMaximum")
        prometheus.stop()
        try:
            unavailable = condition(service, "MetricsUnavailable")
            assert "replicas are held at 3" in unavailable["message"]
            load.stop()
            # nothing waits any more, and whoever took silence for zero would scale now
            until("KEDA to give up again and again", lambda: failures(kubectl, namespace) >= 3)
        finally:
            prometheus.start()
        assert set(seen) == {3}
        until("two replicas, now that the queue can be read", lambda: replicas(service) == 2, 90)
    assert load.failures == []

    spec = by_keda()
    del spec["autoscaling"]
    with watched(service) as seen:
        service.apply(spec)
        until("no scaler", lambda: scalers(service) == [])
        service.wait_ready()
    assert set(seen) == {2}  # neither the three that KEDA found, nor the one that an API server would fill in
    kubectl("scale", f"llmservice/{service.name}", "--replicas=1", "-n", namespace)
    until("one replica, by hand", lambda: replicas(service) == 1)


def failures(kubectl: Kubectl, namespace: str) -> int:
    """How often an autoscaler of the namespace could not read its metrics."""
    events = json.loads(kubectl("get", "events", "-n", namespace, "-o", "json"))["items"]
    counted = [event for event in events if event["reason"].startswith("FailedGet")]
    return sum(int(event.get("count") or 1) for event in counted)


@pytest.mark.usefixtures("keda", "prometheus", "operator")
def test_latency_above_its_target_adds_a_replica_below_takes_it_away_and_none_at_all_does_nothing(
    kubectl: Kubectl, namespace: str
) -> None:
    service = LLMService(kubectl, namespace, "slow")
    first_token = {"metric": "timeToFirstToken", "quantile": 0.5, "target": "500ms"}
    service.apply(by_keda(maxReplicas=2, latency=first_token))
    service.wait_ready()
    condition(service, "Active")
    until("the autoscaler at work", lambda: has_read(kubectl, namespace))
    assert replicas(service) == 1
    with Load(service, clients=CLIENTS, max_tokens=TOKENS) as burst:  # a request waits for seven others
        until("two replicas", lambda: replicas(service) == 2, 90)
        service.wait_ready()
    with Load(service, clients=1, max_tokens=1) as calm:  # soon most of the last two minutes' requests waited for none
        until("one replica", lambda: replicas(service) == 1, 90)

    per_token = {"metric": "timePerOutputToken", "quantile": 0.9, "target": "0.01ms"}
    service.apply(by_keda(maxReplicas=2, latency=per_token))
    with Load(service, clients=2) as load:
        until("two replicas again", lambda: replicas(service) == 2, 90)
    assert burst.failures == calm.failures == load.failures == []


def has_read(kubectl: Kubectl, namespace: str) -> bool:
    """Whether the namespace's autoscaler has read its metric."""
    found = json.loads(kubectl("get", "horizontalpodautoscalers", "-n", namespace, "-o", "json"))["items"]
    return any(item["status"].get("currentMetrics") for item in found)


@pytest.mark.usefixtures("keda", "operator")
def test_a_service_sleeps_until_a_metric_of_others_wakes_it_and_not_while_it_answers(
    kubectl: Kubectl, namespace: str, prometheus: Prometheus, demand: str
) -> None:
    demand_is(prometheus, demand, 0)
    metadata = {"serverAddress": IN_CLUSTER_URL, "query": demand, "threshold": "1", "activationThreshold": "0"}
    service = LLMService(kubectl, namespace, "sleepy")
    wake = [{"type": "prometheus", "name": "demand", "metadata": metadata}]
    service.apply(by_keda(minReplicas=0, maxReplicas=1, queueDepth={"target": 2}, triggers=wake))
    service.wait_ready()
    assert service.condition("Ready")["reason"] == "ScaledToZero"
    condition(service, "Idle")
    assert service.pods() == []

    demand_is(prometheus, demand, 1)
    until("awake", lambda: service.condition("Ready").get("reason") == "Serving", 120)
    stream = LongStream(service, max_tokens=1900)
    until("the stream began", lambda: stream.text or stream.failure)
    demand_is(prometheus, demand, 0)
    stream.join(180)
    assert (stream.failure, stream.finish_reason) == (None, "length")
    until("asleep", lambda: service.condition("Ready").get("reason") == "ScaledToZero", 120)


@pytest.mark.usefixtures("keda", "operator")
def test_a_schedule_wakes_a_service_and_lets_it_sleep_again_at_the_default_pace(
    kubectl: Kubectl, namespace: str
) -> None:
    opens = (datetime.now(UTC) + timedelta(seconds=80)).replace(second=0, microsecond=0)
    closes = opens + timedelta(minutes=1)
    times = {"start": f"{opens:%M %H * * *}", "end": f"{closes:%M %H * * *}", "timezone": "UTC", "desiredReplicas": "1"}
    service = LLMService(kubectl, namespace, "nightly")
    spec = by_keda(minReplicas=0, triggers=[{"type": "cron", "metadata": times}])
    del spec["autoscaling"]["behavior"]
    service.apply(spec)
    until("asleep", lambda: service.condition("Ready").get("reason") == "ScaledToZero")
    assert service.pods() == []
    assert pace(service) == DEFAULT_PACE

    until("awake", lambda: service.condition("Ready").get("reason") == "Serving", 120)
    assert datetime.now(UTC) >= opens
    until("asleep again", lambda: service.condition("Ready").get("reason") == "ScaledToZero", 120)
    assert datetime.now(UTC) >= closes


DEFAULT_PACE = {"scaleUp": (30, [("Pods", 1, 60)]), "scaleDown": (300, [("Pods", 1, 120)])}
"""As documented: one replica a minute after 30 s of need, one less every two minutes after 5 minutes without."""


def pace(service: LLMService) -> dict[str, Any]:
    """The behavior of the HorizontalPodAutoscaler that KEDA made, as the API server has it."""
    name = f"keda-hpa-{service.name}-scaler"
    command = ("get", "horizontalpodautoscaler", name, "-n", service.namespace, "-o", "json")
    until("KEDA's autoscaler", lambda: service.kubectl.attempt(*command).returncode == 0)
    found = json.loads(service.kubectl(*command))["spec"]["behavior"]
    return {
        direction: (
            rules["stabilizationWindowSeconds"],
            [(policy["type"], policy["value"], policy["periodSeconds"]) for policy in rules["policies"]],
        )
        for direction, rules in found.items()
    }


@pytest.mark.usefixtures("prometheus", "operator")
def test_a_plain_autoscaler_scales_on_what_the_adapter_serves_by_the_charts_rules(
    kubectl: Kubectl, namespace: str, adapter: Adapter
) -> None:
    service = LLMService(kubectl, namespace, "plain")
    adapter.start(yaml.safe_load(ADAPTER_RULES.read_text())["rules"]["custom"])
    try:
        service.apply(scaled_spec({"backend": "hpa", "maxReplicas": 2, "queueDepth": {"target": 2}}))
        service.wait_ready()
        with Load(service, clients=CLIENTS, max_tokens=TOKENS) as load:
            until("two replicas", lambda: replicas(service) == 2, 90)
            condition(service, "AtMaximum")
        until("one replica", lambda: replicas(service) == 1, 90)
        condition(service, "Active")
        assert load.failures == []
        refused = kubectl.attempt("scale", f"llmservice/{service.name}", "--replicas=2", "-n", namespace)
        assert "bounded by its minReplicas and maxReplicas" in refused.stderr
    finally:
        adapter.start()


@pytest.mark.usefixtures("keda", "operator")
def test_a_second_scaler_is_told_in_kedas_words_and_backends_follow_one_another(
    kubectl: Kubectl, namespace: str
) -> None:
    service = LLMService(kubectl, namespace, "contested")
    service.apply(tiny_spec(engine=ONE_AT_A_TIME))
    service.wait_ready()
    stranger = ("autoscale", f"deployment/{service.name}", "--name=mine", "--min=1", "--max=2", "--cpu-percent=80")
    kubectl(*stranger, "-n", namespace)
    service.apply(by_keda(queueDepth={"target": 2}))
    conflict = condition(service, "ConflictingScaler")
    assert "is already managed by the hpa 'mine'" in conflict["message"]
    assert service.condition("Ready")["status"] == "True"

    kubectl("delete", "horizontalpodautoscaler", "mine", "-n", namespace)
    condition(service, "Active")
    assert sorted(scalers(service)) == ["contested-scaler", "keda-hpa-contested-scaler"]
    with watched(service) as seen:
        service.apply(scaled_spec({"backend": "hpa", "queueDepth": {"target": 2}}))
        until("the plain autoscaler alone", lambda: scalers(service) == ["contested-scaler"])
        service.apply(by_keda(queueDepth={"target": 2}))
        condition(service, "Active")
    assert set(seen) == {1}
