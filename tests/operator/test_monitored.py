"""The operator beside prometheus-operator's real CRDs, on a real API server."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from quire_operator.api import parse_llmservice
from quire_operator.builders.circumstances import Capabilities, Circumstances
from quire_operator.builders.desired import desired_objects
from quire_operator.kubeapi.resources import (
    AUTOSCALERS,
    DEPLOYMENTS,
    LLMSERVICES,
    PROMETHEUS_RULES,
    SERVICE_MONITORS,
    Resource,
    resource_of,
)
from quire_operator.reconcile.difference import first_difference
from tests.operator.api_client import Namespace, eventually
from tests.operator.operator_process import OperatorProcess
from tests.operator.services import SETTINGS, manifest

pytestmark = pytest.mark.control_plane

WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
QUOTAS = Resource("v1", "ResourceQuota", "resourcequotas")
SERVED = Circumstances(SETTINGS, Capabilities(service_monitors=True, prometheus_rules=True))
NOTICED_SECONDS = 90
"""The operator asks every 30 s which APIs there are."""


def test_what_is_enabled_is_made_as_soon_as_it_can_be(
    namespace: Namespace, operator: OperatorProcess, request: pytest.FixtureRequest
) -> None:
    namespace.create(manifest(replicas=1, monitoring={"serviceMonitor": "enabled"}))
    namespace.create(manifest("quiet"))
    monitored = eventually(lambda: namespace.condition("llama", "Monitored"))
    assert (monitored["status"], monitored["reason"]) == ("False", "PrometheusOperatorMissing")
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    namespace.roll_out("llama")
    eventually(lambda: namespace.condition("llama", "Ready")["status"] == "True")
    assert namespace.condition("quiet", "Monitored") == {}

    request.getfixturevalue("prometheus_operator")
    for name in ("llama", "quiet"):
        eventually(lambda name=name: namespace.condition(name, "Monitored")["status"] == "True", NOTICED_SECONDS)
        eventually(lambda name=name: namespace.find(SERVICE_MONITORS, f"{name}-engine"))
        eventually(lambda name=name: namespace.find(PROMETHEUS_RULES, f"{name}-alerts"))


def test_the_crds_take_every_field_and_add_none_that_would_be_put_back_for_ever(
    namespace: Namespace, operator: OperatorProcess, prometheus_operator: None
) -> None:
    slo = {"timeToFirstToken": "3s", "objective": 0.9}
    monitoring = {"interval": "1.5s", "labels": {"release": "stack"}, "slo": slo}
    created = namespace.create(manifest(monitoring=monitoring))
    for wanted in desired_objects(parse_llmservice(created), SERVED):
        name = wanted["metadata"]["name"]
        live = eventually(lambda w=wanted, n=name: namespace.find(resource_of(w), n), NOTICED_SECONDS)
        assert first_difference(wanted, live) is None
    operator.wait_until_idle()
    versions = [namespace.get(SERVICE_MONITORS, "llama-engine"), namespace.get(PROMETHEUS_RULES, "llama-alerts")]
    assert [item["metadata"]["generation"] for item in versions] == [1, 1]


def test_a_hand_edit_is_put_back_and_what_is_disabled_goes(
    namespace: Namespace, operator: OperatorProcess, prometheus_operator: None
) -> None:
    namespace.create(manifest())
    eventually(lambda: namespace.find(SERVICE_MONITORS, "llama-engine"), NOTICED_SECONDS)
    namespace.api.patch(SERVICE_MONITORS, namespace.name, "llama-engine", {"spec": {"endpoints": []}})
    eventually(lambda: namespace.get(SERVICE_MONITORS, "llama-engine")["spec"]["endpoints"])
    namespace.change("llama", {"monitoring": {"serviceMonitor": "disabled", "alerts": "disabled"}})
    eventually(lambda: namespace.find(SERVICE_MONITORS, "llama-engine") is None)
    eventually(lambda: namespace.find(PROMETHEUS_RULES, "llama-alerts") is None)
    eventually(lambda: namespace.condition("llama", "Monitored") == {})


def test_trouble_with_monitoring_holds_up_neither_the_scaler_nor_what_serves(
    namespace: Namespace, operator: OperatorProcess, prometheus_operator: None
) -> None:
    webhook = _break_webhook_of_rules(namespace)
    _allow_no_service_monitor(namespace)
    try:
        monitoring = {"serviceMonitor": "enabled", "alerts": "enabled"}
        namespace.create(manifest(autoscaling={"backend": "hpa", "maxReplicas": 4}, monitoring=monitoring))
        eventually(lambda: namespace.find(AUTOSCALERS, "llama-scaler"), NOTICED_SECONDS)
        namespace.roll_out("llama")
        eventually(lambda: namespace.condition("llama", "Ready").get("reason") == "Serving")
        told = eventually(lambda: (c := namespace.condition("llama", "Monitored"))["reason"] == "ChildRefused" and c)
        assert told["status"] == "False"
        assert "ServiceMonitor llama-engine" in told["message"]
        assert "PrometheusRule llama-alerts: " in told["message"]
        assert "failed calling webhook" in told["message"]
        assert namespace.condition("llama", "Stalled") == {}
        namespace.change("llama", {"autoscaling": None, "replicas": 1})  # what is no longer wanted goes all the same
        eventually(lambda: namespace.find(AUTOSCALERS, "llama-scaler") is None)
    finally:
        namespace.api.request("DELETE", webhook)
        namespace.api.request("DELETE", QUOTAS.path(namespace.name, "none"))
    eventually(lambda: namespace.condition("llama", "Monitored")["status"] == "True", NOTICED_SECONDS)


def _break_webhook_of_rules(namespace: Namespace) -> str:
    """Have a webhook that never answers be asked about PrometheusRules of this namespace. Returns its path."""
    resources = {"apiGroups": ["monitoring.coreos.com"], "apiVersions": ["*"], "resources": ["prometheusrules"]}
    webhook = {
        "name": "rules.example.com",
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "rules": [{**resources, "operations": ["*"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}},
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    namespace.api.request("POST", WEBHOOKS, {"metadata": {"name": namespace.name}, "webhooks": [webhook]})
    rule = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {"name": "x"}}
    path = f"{PROMETHEUS_RULES.path(namespace.name)}?dryRun=All"
    _until_refused(namespace, path, {**rule, "spec": {"groups": []}}, "failed calling webhook")
    return f"{WEBHOOKS}/{namespace.name}"


def _until_refused(namespace: Namespace, path: str, body: dict[str, Any], words: str) -> None:
    def is_refused() -> bool:
        try:
            namespace.api.request("POST", path, body)
        except httpx.HTTPStatusError as error:
            return words in error.response.text
        return False

    eventually(is_refused)


def _allow_no_service_monitor(namespace: Namespace) -> None:
    """By a quota, with the status that its controller would give it."""
    hard = {"count/servicemonitors.monitoring.coreos.com": "0"}
    namespace.api.create(QUOTAS, {"metadata": {"name": "none", "namespace": namespace.name}, "spec": {"hard": hard}})
    namespace.api.set_status(QUOTAS, namespace.name, "none", {"hard": hard, "used": hard})
    monitor = {"apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor", "metadata": {"name": "x"}}
    path = f"{SERVICE_MONITORS.path(namespace.name)}?dryRun=All"
    _until_refused(namespace, path, {**monitor, "spec": {"selector": {}, "endpoints": []}}, "exceeded quota")


def test_metrics_of_a_service_come_and_go_with_it(namespace: Namespace, operator: OperatorProcess) -> None:
    def wanted() -> list[float]:
        return operator.values("quire_operator_llmservice_replicas", namespace=namespace.name, state="wanted")

    namespace.create(manifest(replicas=2))
    eventually(lambda: wanted() == [2.0])
    reasons = operator.values("quire_operator_llmservice_condition", namespace=namespace.name, type="Ready")
    assert reasons == [1.0]
    namespace.api.delete(LLMSERVICES, namespace.name, "llama")
    eventually(lambda: wanted() == [])


def test_each_line_of_the_log_that_is_about_a_service_names_it(namespace: Namespace, operator: OperatorProcess) -> None:
    namespace.create(manifest())
    namespace.create(manifest("bad", podTemplate={"spec": {"priority": "high"}}))

    def lines(name: str) -> list[str]:
        own = {"namespace": namespace.name, "llmservice": name}
        return [line["message"] for line in operator.lines() if own.items() <= line.items()]

    eventually(lambda: any(line.startswith("applied Deployment llama") for line in lines("llama")))
    eventually(lambda: any(line.startswith("ChildRefused") for line in lines("bad")))
    unnamed = [
        line
        for line in operator.lines()
        if line["logger"].startswith("quire_operator.reconcile") and not {"namespace", "llmservice"} <= line.keys()
    ]
    assert unnamed == []
