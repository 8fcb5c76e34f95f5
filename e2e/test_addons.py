"""Every add-on does for a plain Deployment what it is there for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from e2e.cluster.addons.adapter import WAITING_RULE, Adapter
from e2e.cluster.addons.prometheus import IN_CLUSTER_URL, Prometheus
from e2e.cluster.errors import ClusterError
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.scrape_configs import scrape_configs
from e2e.llmservice import LABEL, until
from e2e.metric_source import PORT, MetricSource


@pytest.fixture
def demand(prometheus: Prometheus) -> Iterator[str]:
    """The name of a series that has no value yet and that one test gives values by a recording rule."""
    name = f"demand_{uuid4().hex[:8]}"
    yield name
    prometheus.remove_rules(name)


def record(prometheus: Prometheus, series: str, value: float) -> None:
    prometheus.load_rules(series, [{"name": series, "rules": [{"record": series, "expr": f"vector({value})"}]}])
    until(f"{series} to be {value}", lambda: prometheus.query(series)[:1] == [({"__name__": series}, value)])


def scaled_object(target: str, query: str) -> dict[str, Any]:
    trigger = {"serverAddress": IN_CLUSTER_URL, "query": query, "threshold": "1", "activationThreshold": "0"}
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": target},
        "spec": {
            "scaleTargetRef": {"name": target},
            "minReplicaCount": 0,
            "maxReplicaCount": 1,
            "pollingInterval": 2,
            "cooldownPeriod": 3,
            "triggers": [{"type": "prometheus", "metadata": trigger}],
        },
    }


def test_prometheus_scrapes_an_annotated_pod_and_names_its_llmservice(
    prometheus: Prometheus, kubectl: Kubectl, namespace: str
) -> None:
    source = MetricSource(kubectl, namespace, "source", "waiting 7", {LABEL: "llama"})
    source.apply()

    def scraped(value: float) -> bool:
        samples = prometheus.query(f'waiting{{namespace="{namespace}"}}')
        return [(s["pod"], s["llmservice"], v) for s, v in samples] == [(source.pods()[0], "llama", value)]

    until("the first value scraped", lambda: scraped(7))
    source.expose("waiting 9\n")
    until("the second value scraped", lambda: scraped(9))


def test_prometheus_comes_back_with_its_series_after_an_outage(prometheus: Prometheus, demand: str) -> None:
    record(prometheus, demand, 5)
    prometheus.stop()
    try:
        with pytest.raises(ClusterError, match="does not answer"):
            prometheus.query(demand)
    finally:
        prometheus.start()
    assert prometheus.query(f"max_over_time({demand}[10m])") == [({}, 5.0)]


def test_prometheus_refuses_a_broken_rule_with_its_reason_and_keeps_the_one_before(
    prometheus: Prometheus, demand: str
) -> None:
    record(prometheus, demand, 5)
    with pytest.raises(ClusterError, match="could not parse expression"):
        prometheus.load_rules(demand, [{"name": demand, "rules": [{"record": demand, "expr": "vector("}]}])
    prometheus.stop()
    prometheus.start()
    record(prometheus, demand, 6)


@pytest.mark.usefixtures("keda")
def test_keda_wakes_a_deployment_and_puts_it_to_sleep_on_a_query(
    prometheus: Prometheus, kubectl: Kubectl, namespace: str, demand: str
) -> None:
    record(prometheus, demand, 0)
    target = MetricSource(kubectl, namespace, "target", "none 0")
    target.apply(replicas=0)
    kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(scaled_object("target", demand)))
    is_ready = ("--for=condition=Ready", "scaledobject/target", "-n", namespace, "--timeout=60s")
    kubectl("wait", *is_ready)
    assert target.replicas() == 0

    record(prometheus, demand, 2)
    until("a pod ready", lambda: kubectl("get", "pods", "-n", namespace).count("1/1"), 120)
    record(prometheus, demand, 0)
    until("no pod left", lambda: target.replicas() == 0 and target.pods() == [], 120)


@pytest.mark.usefixtures("keda")
def test_keda_refuses_a_second_scaler_on_one_target(
    prometheus: Prometheus, kubectl: Kubectl, namespace: str, demand: str
) -> None:
    MetricSource(kubectl, namespace, "target", "none 0").apply(replicas=0)
    first = scaled_object("target", demand)
    kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(first))
    second = first | {"metadata": {"name": "another"}}

    def refusal() -> str:
        result = kubectl.attempt("apply", "--dry-run=server", "-n", namespace, "-f", "-", input=json.dumps(second))
        return result.stderr if result.returncode else ""

    # it looks into a cache, which hears of the first a little later
    assert "is already managed by the " in until("a refusal", refusal)  # by the other, or by what KEDA made of it


@pytest.mark.usefixtures("adapter")
def test_an_hpa_scales_on_what_the_adapter_says_of_its_pods(kubectl: Kubectl, namespace: str) -> None:
    source = MetricSource(kubectl, namespace, "busy", "vllm:num_requests_waiting 8")
    source.apply()
    target = {"type": "AverageValue", "averageValue": "5"}
    hpa = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "busy"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "busy"},
            "minReplicas": 1,
            "maxReplicas": 2,
            "metrics": [{"type": "Pods", "pods": {"metric": {"name": "vllm_num_requests_waiting"}, "target": target}}],
        },
    }
    kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(hpa))
    until("a second replica", lambda: source.replicas() == 2, 120)


def test_the_adapter_started_with_other_rules_serves_those(
    adapter: Adapter, prometheus: Prometheus, kubectl: Kubectl, namespace: str, demand: str
) -> None:
    rule = {"record": demand, "expr": "vector(1)", "labels": {"namespace": namespace, "pod": "any"}}
    prometheus.load_rules(demand, [{"name": demand, "rules": [rule]}])
    adapter.start([WAITING_RULE | {"seriesQuery": f'{demand}{{pod!=""}}', "name": {"as": "renamed"}}])
    try:
        metrics = ("get", "--raw", "/apis/custom.metrics.k8s.io/v1beta1")
        until("the metric served", lambda: '"pods/renamed"' in kubectl.attempt(*metrics).stdout)
    finally:
        adapter.start()


def test_the_kinds_of_prometheus_operator_are_served_and_checked(
    monitoring_crds: None, kubectl: Kubectl, namespace: str
) -> None:
    selector = {"matchLabels": {"app": "x"}}
    specs: dict[str, dict[str, Any]] = {
        "ServiceMonitor": {"selector": selector, "endpoints": [{"port": "http", "interval": "15s"}]},
        "PodMonitor": {"selector": selector, "podMetricsEndpoints": [{"port": "http"}]},
        "PrometheusRule": {"groups": [{"name": "x", "rules": [{"alert": "X", "expr": "vector(1)"}]}]},
    }
    for kind, spec in specs.items():
        kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(monitor(kind, spec)))
    broken = monitor("ServiceMonitor", {"selector": selector, "endpoints": [{"interval": "soon"}]})
    result = kubectl.attempt("apply", "-n", namespace, "-f", "-", input=json.dumps(broken))
    assert "spec.endpoints[0].interval" in result.stderr


def test_prometheus_scrapes_what_prometheus_operator_makes_of_a_service_monitor(
    prometheus: Prometheus, kubectl: Kubectl, namespace: str
) -> None:
    MetricSource(kubectl, namespace, "source", "waiting 7", {LABEL: "llama"}).apply()
    ports = [{"name": "http", "port": 80, "targetPort": PORT}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "source", "labels": {"app": "source"}},
        "spec": {"selector": {"app": "source"}, "ports": ports},
    }
    kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(service))
    label = "__meta_kubernetes_pod_label_serving_quire_dev_llmservice"
    endpoint = {
        "port": "http",
        "interval": "2s",
        "scrapeTimeout": "2s",
        "relabelings": [{"sourceLabels": [label], "targetLabel": "llmservice"}],
    }
    service_monitor = monitor(
        "ServiceMonitor", {"selector": {"matchLabels": {"app": "source"}}, "endpoints": [endpoint]}
    )
    service_monitor["metadata"]["namespace"] = namespace
    prometheus.load_scrape_configs(namespace, scrape_configs(service_monitor))
    try:
        query = f'waiting{{namespace="{namespace}",job="source",service="source",llmservice="llama"}}'
        until("the endpoint scraped", lambda: [value for _, value in prometheus.query(query)] == [7])
    finally:
        prometheus.remove_scrape_configs(namespace)


def test_a_service_monitor_that_prometheus_operator_would_reject_is_refused_with_its_reason() -> None:
    selector = {"matchLabels": {"app": "x"}}
    endpoint = {"port": "http", "interval": "5s", "scrapeTimeout": "10s"}
    rejected = monitor("ServiceMonitor", {"selector": selector, "endpoints": [endpoint]})
    with pytest.raises(ClusterError, match=r"endpoints\[0\].*scrapeTimeout .* greater than scrapeInterval"):
        scrape_configs(rejected)
    misspelt = monitor("PodMonitor", {"selector": selector, "podMetricsEndpoint": [{"port": "http"}]})
    with pytest.raises(ClusterError, match="podMetricsEndpoint"):
        scrape_configs(misspelt)


def monitor(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "monitoring.coreos.com/v1", "kind": kind, "metadata": {"name": "x"}, "spec": spec}


@pytest.mark.usefixtures("lws")
def test_a_group_of_two_pods_comes_up_and_knows_its_leader(kubectl: Kubectl, namespace: str) -> None:
    container = {
        "name": "idle",
        "image": "debian:bookworm-slim",
        "command": ["sh", "-c", 'echo "leader $LWS_LEADER_ADDRESS" && exec sleep infinity'],
    }
    worker = {"spec": {"containers": [container], "terminationGracePeriodSeconds": 0}}
    group = {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": "pair"},
        "spec": {"replicas": 1, "leaderWorkerTemplate": {"size": 2, "workerTemplate": worker}},
    }
    kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(group))
    kubectl("wait", "--for=condition=Available", "lws/pair", "-n", namespace, "--timeout=100s")
    pods = ("pair-0", "pair-0-1")

    def logs() -> list[str]:
        return [kubectl.attempt("logs", pod, "-n", namespace).stdout for pod in pods]

    until("a line of each", lambda: all(logs()))  # the set is available before its worker's container runs
    assert logs() == [f"leader pair-0.pair.{namespace}\n"] * 2


@pytest.mark.usefixtures("network_policy")
def test_a_network_policy_lets_in_the_pods_that_it_names_and_no_others(kubectl: Kubectl, namespace: str) -> None:
    for name in ("server", "friend", "stranger"):
        MetricSource(kubectl, namespace, name, "up 1").apply()
    address = kubectl("get", "pods", "-l", "app=server", "-n", namespace, "-o", "jsonpath={.items[0].status.podIP}")

    def reaches(client: str) -> bool:
        command = ("timeout", "2", "bash", "-c", f"exec 3<>/dev/tcp/{address}/{PORT}")
        return kubectl.attempt("exec", f"deployment/{client}", "-n", namespace, "--", *command).returncode == 0

    until("the stranger in", lambda: reaches("stranger"))
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "friends-only"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}],
        },
    }
    kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(policy))
    until("the friend in and the stranger kept out", lambda: reaches("friend") and not reaches("stranger"))
    kubectl("wait", "--for=condition=Ready", "pod", "-l", "app=server", "-n", namespace, "--timeout=60s")
