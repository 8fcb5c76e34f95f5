"""What the Prometheus operator is told of an LLMService, and what its status says about that."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from quire_engine.server.metrics import FIRST_TOKEN_BUCKETS, TOKEN_BUCKETS
from quire_operator.builders.circumstances import EVERYTHING, Capabilities, Circumstances
from quire_operator.builders.desired import desired_objects
from quire_operator.builders.engines import engine_of
from quire_operator.builders.service_alerts import DOWNLOAD_REASONS
from quire_operator.reconcile.monitoring import judge_monitoring
from quire_operator.reconcile.observation import Observation
from tests.docs.reasons_in_code import download_reasons, engine_reasons
from tests.operator.services import SETTINGS, service

MONITORS = ("ServiceMonitor", "PrometheusRule")
NOWHERE = Capabilities()


def children(capabilities: Capabilities = EVERYTHING, **spec: Any) -> dict[str, dict[str, Any]]:
    built = desired_objects(service(**spec), Circumstances(SETTINGS, capabilities))
    return {f"{child['kind']}/{child['metadata']['name']}": child for child in built}


def monitors(capabilities: Capabilities = EVERYTHING, **spec: Any) -> set[str]:
    return {child["kind"] for child in children(capabilities, **spec).values()} & set(MONITORS)


def endpoint(**monitoring: Any) -> dict[str, Any]:
    (found,) = children(monitoring=monitoring)["ServiceMonitor/llama-engine"]["spec"]["endpoints"]
    return dict(found)


def test_auto_makes_what_the_cluster_serves() -> None:
    assert monitors() == set(MONITORS)
    assert monitors(dataclasses.replace(EVERYTHING, prometheus_rules=False)) == {"ServiceMonitor"}
    assert monitors(NOWHERE) == set()


@pytest.mark.parametrize("switch", ["auto", "enabled"])
def test_each_half_can_be_had_alone(switch: str) -> None:
    assert monitors(monitoring={"alerts": "disabled", "serviceMonitor": switch}) == {"ServiceMonitor"}
    assert monitors(monitoring={"serviceMonitor": "disabled", "alerts": switch}) == {"PrometheusRule"}


def test_what_is_suspended_is_not_watched() -> None:
    assert monitors(suspend=True) == set()


def test_the_monitor_selects_the_headless_service_alone_or_each_pod_would_be_scraped_twice() -> None:
    built = children()
    selector = built["ServiceMonitor/llama-engine"]["spec"]["selector"]["matchLabels"]
    selected = [
        name
        for name, child in built.items()
        if child["kind"] == "Service" and selector.items() <= child["metadata"]["labels"].items()
    ]
    assert selected == ["Service/llama-pods"]
    ports = [port["name"] for port in built["Service/llama-pods"]["spec"]["ports"]]
    assert endpoint()["port"] in ports


def test_pods_that_are_not_ready_are_scraped_too_which_a_podmonitor_would_be_there_for() -> None:
    assert children()["Service/llama-pods"]["spec"]["publishNotReadyAddresses"] is True


def test_series_get_the_label_by_which_everything_else_selects_them() -> None:
    (relabeling,) = endpoint()["relabelings"]
    assert relabeling["sourceLabels"] == ["__meta_kubernetes_pod_label_serving_quire_dev_llmservice"]
    assert relabeling["targetLabel"] == "llmservice"


@pytest.mark.parametrize(("written", "read"), [("15s", "15s"), ("1m", "60s"), ("1.5s", "1500ms"), ("500ms", "500ms")])
def test_the_interval_is_written_as_prometheus_reads_it(written: str, read: str) -> None:
    assert endpoint(interval=written)["interval"] == read


def test_labels_of_the_stack_are_on_both_and_cannot_take_the_operators_away() -> None:
    labels = {"release": "kube-prometheus", "serving.quire.dev/llmservice": "other"}
    built = children(monitoring={"labels": labels})
    for name in ("ServiceMonitor/llama-engine", "PrometheusRule/llama-alerts"):
        found = built[name]["metadata"]["labels"]
        assert found["release"] == "kube-prometheus"
        assert found["serving.quire.dev/llmservice"] == "llama"


def test_the_objectives_know_the_bounds_of_the_engines_histograms() -> None:
    metrics = engine_of(service()).metrics
    assert metrics.time_to_first_token_buckets == FIRST_TOKEN_BUCKETS
    assert metrics.time_per_output_token_buckets == TOKEN_BUCKETS


def test_the_alert_on_downloads_knows_every_reason_of_the_engine() -> None:
    assert set(DOWNLOAD_REASONS) == download_reasons()
    assert set(DOWNLOAD_REASONS) < engine_reasons()  # by the same names


def verdict(capabilities: Capabilities, **monitoring: Any) -> tuple[bool, str] | None:
    found = judge_monitoring(service(monitoring=monitoring), Observation(capabilities=capabilities))
    return (found.holds, found.reason) if found is not None else None


def test_monitored_is_absent_where_nothing_is_asked_for_and_nothing_is_there() -> None:
    assert verdict(NOWHERE) is None
    assert verdict(EVERYTHING, serviceMonitor="disabled", alerts="disabled") is None


def test_monitored_holds_where_the_prometheus_operator_was_told() -> None:
    assert verdict(EVERYTHING) == (True, "Monitored")
    assert verdict(EVERYTHING, serviceMonitor="enabled", alerts="disabled") == (True, "Monitored")


def test_alerts_on_an_engine_that_nobody_was_told_to_scrape_are_said_to_need_its_series() -> None:
    def words(capabilities: Capabilities, **monitoring: Any) -> str:
        found = judge_monitoring(service(monitoring=monitoring), Observation(capabilities=capabilities))
        return found.message if found is not None else ""

    rules_alone = dataclasses.replace(EVERYTHING, service_monitors=False)
    assert "need its series with the label llmservice" in words(EVERYTHING, serviceMonitor="disabled")
    assert "need its series with the label llmservice" in words(rules_alone)
    assert "need its series" not in words(EVERYTHING)
    assert "need its series" not in words(EVERYTHING, alerts="disabled")


def test_what_is_enabled_and_cannot_be_is_named_with_the_next_step() -> None:
    monitors_alone = dataclasses.replace(EVERYTHING, prometheus_rules=False)
    found = judge_monitoring(service(monitoring={"alerts": "enabled"}), Observation(capabilities=monitors_alone))
    assert found is not None
    assert (found.holds, found.reason) == (False, "PrometheusOperatorMissing")
    for part in ("spec.monitoring.alerts", "PrometheusRule", "install the Prometheus operator"):
        assert part in found.message
    assert "ServiceMonitor" not in found.message


def test_an_engine_gets_the_alerts_on_what_it_measures() -> None:
    def alerts(engine: str) -> set[str]:
        image = {"image": "ghcr.io/engine:1.0"} if engine != "quire" else {}
        rule = children(engine={"type": engine, **image})["PrometheusRule/llama-alerts"]
        return {entry["alert"] for group in rule["spec"]["groups"] for entry in group["rules"] if "alert" in entry}

    told_by_the_operator = {
        "LLMServiceUnavailable",
        "LLMServiceReplicasShort",
        "LLMServiceDownloadFailing",
        "LLMServiceStalled",
    }
    assert alerts("tgi") == {*told_by_the_operator, "LLMServiceQueueTooDeep"}
    assert alerts("vllm") == alerts("quire") > told_by_the_operator
