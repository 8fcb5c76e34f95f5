"""What the API server does not do is said in the status, and tried again: webhooks that are away, rights that lack."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import httpx
import pytest
import yaml

from quire_operator.kubeapi.resources import DEPLOYMENTS, SERVICE_MONITORS, SERVICES
from tests.operator.api_client import ApiClient, Namespace, eventually
from tests.operator.conftest import REPOSITORY, StartOperator, grant
from tests.operator.operator_process import OperatorProcess
from tests.operator.services import manifest

pytestmark = pytest.mark.control_plane

WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"


@contextlib.contextmanager
def webhook_away(namespace: Namespace, operation: str) -> Iterator[None]:
    """A webhook that never answers is asked about Deployments of this namespace."""
    webhook = {
        "name": "deployments.example.com",
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "rules": [
            {"apiGroups": ["apps"], "apiVersions": ["*"], "resources": ["deployments"], "operations": [operation]}
        ],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}},
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    namespace.api.request("POST", WEBHOOKS, {"metadata": {"name": namespace.name}, "webhooks": [webhook]})
    try:
        eventually(lambda: _is_asked(namespace, operation))
        yield
    finally:
        namespace.api.request("DELETE", f"{WEBHOOKS}/{namespace.name}")


def _is_asked(namespace: Namespace, operation: str) -> bool:
    path, query = DEPLOYMENTS.path(namespace.name), "dryRun=All"
    if operation == "DELETE":
        method, path, body = "DELETE", f"{path}/llama", None
    else:
        labels = {"app": "x"}
        template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "x", "image": "x"}]}}
        body = {"metadata": {"name": "x"}, "spec": {"selector": {"matchLabels": labels}, "template": template}}
        method = "POST"
    try:
        namespace.api.request(method, f"{path}?{query}", body)
    except httpx.HTTPStatusError as error:
        return "failed calling webhook" in error.response.text
    return False


def failing(namespace: Namespace) -> str:
    message = namespace.message("llama", "ReconcileFailed", 60)
    assert namespace.condition("llama", "Reconciling")["reason"] == "ReconcileFailed"
    assert namespace.condition("llama", "Stalled") == {}
    return message


def test_a_new_service_says_that_a_webhook_does_not_answer_and_starts_once_it_does(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    with webhook_away(namespace, "CREATE"):
        namespace.create(manifest())
        message = failing(namespace)
        assert "/deployments/llama: 500 InternalError" in message
        assert 'failed calling webhook "deployments.example.com"' in message
        assert namespace.find(SERVICES, "llama") is not None
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"), 60)
    eventually(lambda: namespace.condition("llama", "Ready")["reason"] == "Starting")


def test_a_service_that_cannot_be_suspended_says_so(namespace: Namespace, operator: OperatorProcess) -> None:
    namespace.create(manifest())
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    namespace.roll_out("llama")
    eventually(lambda: namespace.condition("llama", "Ready")["reason"] == "Serving")
    with webhook_away(namespace, "DELETE"):
        namespace.change("llama", {"suspend": True})
        assert "DELETE" in failing(namespace)
        assert namespace.condition("llama", "Available")["status"] == "True"
    eventually(lambda: namespace.condition("llama", "Ready")["reason"] == "Suspended", 60)


def test_an_operator_without_the_rights_for_an_optional_api_serves_and_says_so(
    namespace: Namespace, api: ApiClient, start_operator: StartOperator, prometheus_operator: None
) -> None:
    documents = yaml.safe_load_all((REPOSITORY / "manifests/base/rbac.yaml").read_text())
    (role,) = [body for body in documents if body["kind"] == "ClusterRole" and _is_for_monitoring(body)]
    lesser = {**role, "rules": [rule for rule in role["rules"] if "monitoring.coreos.com" not in rule["apiGroups"]]}
    grant(api, lesser)
    try:
        start_operator("--engine-image=quire/engine:test", "--no-leader-election")
        namespace.create(manifest(monitoring={"serviceMonitor": "enabled", "alerts": "disabled"}))
        eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
        namespace.roll_out("llama")
        eventually(lambda: namespace.condition("llama", "Ready")["reason"] == "Serving")
        told = eventually(lambda: (c := namespace.condition("llama", "Monitored"))["reason"] == "ChildRefused" and c)
        assert "cannot get resource" in told["message"]
        assert told["message"].endswith("Give the operator the role of its version")
        assert namespace.condition("llama", "Stalled") == {}
    finally:
        grant(api, role)
    eventually(lambda: namespace.find(SERVICE_MONITORS, "llama-engine"), 60)


def _is_for_monitoring(role: dict[str, list[dict[str, list[str]]]]) -> bool:
    return any("monitoring.coreos.com" in rule["apiGroups"] for rule in role["rules"])
