"""The claim and the namespace that a cache finds, with the real operator and API server."""

from __future__ import annotations

import pytest

from quire_operator.kubeapi.resources import DEPLOYMENTS, EVENTS, NAMESPACES
from tests.operator.api_client import Namespace, eventually
from tests.operator.claims import jobs, make_claim
from tests.operator.operator_process import OperatorProcess
from tests.operator.prefetch_job import cached, only_job, wanting

pytestmark = pytest.mark.control_plane

ON_NODES = {"local": {"hostPath": "/mnt/models"}}


def test_a_claim_that_does_not_exist_is_said_before_there_is_a_pod_and_waited_for(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    namespace.create(wanting())
    assert "claim models does not exist" in cached(namespace, "llama", "ClaimNotFound")["message"]
    eventually(lambda: namespace.condition("llama", "Stalled")["reason"] == "ClaimNotFound")
    assert jobs(namespace) == []
    make_claim(namespace)
    eventually(lambda: jobs(namespace), 60)
    cached(namespace, "llama", "Downloading")


def test_a_claim_of_one_node_is_advised_against_once(namespace: Namespace, operator: OperatorProcess) -> None:
    make_claim(namespace, mode="ReadWriteOnce")
    namespace.create(wanting(replicas=2))
    only_job(namespace)
    advice = eventually(lambda: namespace.status("llama").get("advice"))
    assert "ClaimNotShared" in [each["reason"] for each in advice]
    eventually(lambda: "ClaimNotShared" in [e["reason"] for e in namespace.api.list(EVENTS, namespace.name)])
    assert namespace.condition("llama", "Accepted")["status"] == "True"


def test_a_claim_of_one_pod_is_refused(namespace: Namespace, operator: OperatorProcess) -> None:
    make_claim(namespace, mode="ReadWriteOncePod")
    namespace.create(wanting())
    eventually(lambda: namespace.condition("llama", "Accepted")["reason"] == "ClaimNotShared")
    assert jobs(namespace) == []
    cache = {"claimName": "models", "prefetch": False}
    namespace.change("llama", {"cache": cache, "replicas": 1, "rollout": {"strategy": "Recreate"}})
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))


def test_a_directory_of_the_node_is_refused_until_the_namespace_allows_it(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    enforced = "pod-security.kubernetes.io/enforce"
    path = NAMESPACES.path(name=namespace.name)
    patch = {"metadata": {"labels": {enforced: "restricted"}}}
    namespace.api.request("PATCH", path, patch, "application/merge-patch+json")
    namespace.create(wanting(cache=ON_NODES))
    eventually(lambda: namespace.condition("llama", "Accepted")["reason"] == "PodForbidden")
    assert namespace.find(DEPLOYMENTS, "llama") is None
    namespace.api.request("PATCH", path, {"metadata": {"labels": {enforced: None}}}, "application/merge-patch+json")
    deployment = eventually(lambda: namespace.find(DEPLOYMENTS, "llama"), 60)
    assert deployment["spec"]["template"]["spec"]["initContainers"][0]["name"] == "stage"
