"""A served model and the operator, watched by a real Prometheus as prometheus-operator would have it watch them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from e2e import release
from e2e.cluster.addons.prometheus import Prometheus
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.scrape_configs import scrape_configs
from e2e.llmservice import LLMService, tiny_spec, until
from e2e.load import Load
from e2e.panels import PanelQuery, is_number, panel_queries
from quire_operator.monitoring.dashboards.fleet import fleet_dashboard
from quire_operator.monitoring.dashboards.service import service_dashboard

SLOTS = 2
"""Requests that the engine takes at once: fewer than there are clients, so that some wait."""


@pytest.fixture(scope="module")
def served(
    kubectl: Kubectl, operator: str, monitoring_crds: None, prometheus: Prometheus, module_namespace: str
) -> Iterator[LLMService]:
    """A model that is served, and another whose name begins alike, both scraped as their ServiceMonitors say."""
    services = [LLMService(kubectl, module_namespace, name) for name in ("llama", "llama-2")]
    for service in services:
        service.apply(tiny_spec(engine={"maxNumSeqs": SLOTS}, monitoring={"interval": "2s"}))
    for service in services:
        service.wait_ready()
        until(f"the ServiceMonitor of {service.name}", partial(_monitor, service), 60)
    monitors = [monitor for service in services if (monitor := _monitor(service)) is not None]
    prometheus.load_scrape_configs("test-monitoring", scrape_configs(*monitors))
    yield services[0]
    prometheus.remove_scrape_configs("test-monitoring")
    for service in services:
        service.delete()


def _monitor(service: LLMService) -> dict[str, Any] | None:
    command = ("get", "servicemonitor", f"{service.name}-engine", "-n", service.namespace, "-o", "json")
    result = service.kubectl.attempt(*command)
    return json.loads(result.stdout) if result.returncode == 0 else None


def _queries(served: LLMService, dashboard: dict[str, Any]) -> list[PanelQuery]:
    values = {"namespace": served.namespace, "llmservice": served.name}
    return list(panel_queries(dashboard, window="20s", shown="2m", **values))


def test_the_service_monitor_finds_each_pod_once(served: LLMService, prometheus: Prometheus) -> None:
    (pod,) = served.pods()
    own = f'namespace="{served.namespace}",llmservice="{served.name}"'

    def targets() -> list[tuple[str, float]]:
        # prometheus-operator calls the job after the Service; the node scrapes by annotations too, as another job
        up = prometheus.query(f'up{{{own},job="{served.name}-pods"}}')
        return [(labels["pod"], value) for labels, value in up]

    until("the pod is scraped once", lambda: targets() == [(pod["metadata"]["name"], 1.0)], 60)


def test_every_panel_of_both_dashboards_has_data_under_load(served: LLMService, prometheus: Prometheus) -> None:
    queries = [*_queries(served, fleet_dashboard().as_json()), *_queries(served, service_dashboard().as_json())]
    busy = {
        "Throughput / generated",
        "Requests / running",
        "Requests / waiting",
        "Time to first token / P99",
        "Time per output token / P50",
        "Whole answer / P99",
        "KV cache in use / {{pod}}",
        "Tokens / {{namespace}}/{{llmservice}}",
        "Replicas / ready",
        "LLMServices / ready",
        "Leading / leading",
    }
    assert busy <= {str(query) for query in queries}

    def has_data(query: PanelQuery) -> bool:
        samples = prometheus.query(query.expression)
        if str(query) in busy:
            return is_number(samples) and any(value > 0 for _, value in samples)
        return is_number(samples) or query.is_table  # nothing that is not ready is no fault

    with Load(served, clients=SLOTS + 3) as load:
        for query in queries:
            until(f"data for {query}: {query.expression}", partial(has_data, query), 60)
    assert load.failures == []


def test_alerts_of_a_healthy_service_are_evaluated_and_silent(served: LLMService, prometheus: Prometheus) -> None:
    command = ("get", "prometheusrule", f"{served.name}-alerts", "-n", served.namespace, "-o", "json")
    rule = json.loads(served.kubectl(*command))
    prometheus.load_rules("test-monitoring", rule["spec"]["groups"])
    try:
        name = f'namespace="{served.namespace}",llmservice="{served.name}"'
        until("rules are evaluated", lambda: prometheus.query(f"llmservice:slo_errors:ratio_rate5m{{{name}}}"), 60)
        assert prometheus.query(f'ALERTS{{{name},alertstate="firing"}}') == []
    finally:
        prometheus.remove_rules("test-monitoring")


def test_the_operators_log_names_the_service_on_each_line(served: LLMService, kubectl: Kubectl) -> None:
    text = kubectl("logs", "-n", release.NAMESPACE, "-l", "app.kubernetes.io/name=quire-operator", "--tail=-1")
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    about = [line for line in lines if line.get("llmservice") == served.name and line["namespace"] == served.namespace]
    assert any("applied Deployment" in line["message"] for line in about)
    assert all("llmservice" in line for line in lines if line["logger"].startswith("quire_operator.reconcile"))
