"""With the real controller manager and scheduler, and no node: what they report is what the service says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.cluster.control_plane import start_control_plane
from e2e.cluster.kubeconfig import User
from quire_operator.kubeapi.resources import CHILDREN, CLAIMS, DEPLOYMENTS, LLMSERVICES, PODS, Resource
from tests.operator.api_client import Namespace, eventually
from tests.operator.conftest import OPERATOR_USER, operators, prepare, program
from tests.operator.services import manifest

pytestmark = pytest.mark.control_plane

QUOTAS = Resource("v1", "ResourceQuota", "resourcequotas")
NODES = "/api/v1/nodes"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    """The namespace `real` of a control plane of its own, with the operator at work."""
    program("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
    plane = start_control_plane(
        tmp_path_factory.mktemp("controllers"),
        components=("etcd", "apiserver", "controller-manager", "scheduler"),
        users=[User(OPERATOR_USER, ())],
    )
    try:
        api = prepare(plane)
        api.make_namespace("real")
        with operators(plane, tmp_path_factory.mktemp("operator")) as start:
            start("--lease-seconds=3").wait_until_leading()
            yield Namespace(api, "real")
    finally:
        plane.stop()


def ready(plane: Namespace, name: str, reason: str) -> str:
    """Message of the Ready condition once it has this reason."""

    def message() -> str:
        condition = plane.condition(name, "Ready")
        assert condition["reason"] == reason, condition
        return str(condition["message"])

    return eventually(message)


def test_deleting_a_service_has_the_garbage_collector_remove_everything(plane: Namespace) -> None:
    plane.create(manifest("gone", cache={"volume": {"size": "1Gi"}}))
    eventually(lambda: plane.find(DEPLOYMENTS, "gone") and plane.find(CLAIMS, "gone-cache"))
    plane.api.delete(LLMSERVICES, plane.name, "gone")

    def left() -> list[str]:
        return [
            item["metadata"]["name"]
            for resource in (*CHILDREN, PODS)
            for item in plane.api.list(resource, plane.name)
            if item["metadata"].get("labels", {}).get("serving.quire.dev/llmservice") == "gone"
        ]

    eventually(lambda: not left(), 60)


def test_a_cluster_without_nodes_is_said_in_the_schedulers_words(plane: Namespace) -> None:
    plane.create(manifest("nowhere"))
    assert "no nodes available to schedule pods" in ready(plane, "nowhere", "Unschedulable")
    assert plane.condition("nowhere", "Reconciling")["reason"] == "Unschedulable"


def test_a_gpu_that_no_node_has_is_named_with_the_number_wanted(plane: Namespace) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "small"}}
    plane.api.request("POST", NODES, node)
    sizes = {"cpu": "64", "memory": "256Gi", "pods": "100"}
    conditions = [{"type": "Ready", "status": "True"}]
    status = {"status": {"capacity": sizes, "allocatable": sizes, "conditions": conditions}}
    plane.api.request("PATCH", f"{NODES}/small/status", status, "application/merge-patch+json")
    taints = {"spec": {"taints": []}}
    plane.api.request("PATCH", f"{NODES}/small", taints, "application/merge-patch+json")
    try:
        plane.create(manifest("greedy", resources={"gpu": {"count": 1, "resourceName": "example.com/gpu"}}))
        assert "no node has 1 example.com/gpu free" in ready(plane, "greedy", "Unschedulable")
    finally:
        plane.api.request("DELETE", f"{NODES}/small")


def test_a_quota_that_is_used_up_is_named(plane: Namespace) -> None:
    metadata = {"name": "none", "namespace": plane.name}
    plane.api.create(
        QUOTAS,
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": {"limits.memory": "1"}}},
    )
    try:
        plane.create(manifest("poor"))
        assert "exceeded quota: none" in ready(plane, "poor", "QuotaExceeded")
    finally:
        plane.api.delete(QUOTAS, plane.name, "none")


def test_a_claim_that_nobody_can_provide_is_named_with_what_to_set(plane: Namespace) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "bare"}}
    plane.api.request("POST", NODES, node)
    try:
        cache = {"volume": {"size": "1Gi", "storageClassName": "absent"}}
        plane.create(manifest("empty", model={"source": "hf://org/name"}, cache=cache))
        message = ready(plane, "empty", "ClaimPending")
        assert "claim empty-cache (of storage class absent, ReadWriteMany) has no volume yet" in message
        plane.create(manifest("lost", model={"source": "pvc://absent/model"}))
        assert "claim absent" in ready(plane, "lost", "ClaimNotFound")
    finally:
        plane.api.request("DELETE", f"{NODES}/bare")
