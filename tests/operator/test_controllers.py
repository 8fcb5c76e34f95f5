"""With the real controller manager and scheduler, and no node: what they report is what the service says."""

from __future__ import annotations

import pytest

from quire_operator.kubeapi.resources import CHILDREN, CLAIMS, DEPLOYMENTS, LLMSERVICES, PODS, Resource
from tests.operator.api_client import Namespace, eventually
from tests.operator.claims import jobs, make_claim
from tests.operator.fake_node import GPU, fake_node
from tests.operator.prefetch_job import only_job, owners, wanting
from tests.operator.services import manifest

pytestmark = pytest.mark.control_plane

QUOTAS = Resource("v1", "ResourceQuota", "resourcequotas")
NODES = "/api/v1/nodes"


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


def test_a_service_whose_claim_nobody_provides_goes_at_once_with_its_claim(plane: Namespace) -> None:
    cache = {"volume": {"size": "1Gi", "storageClassName": "absent"}}
    plane.create(manifest("stuck", model={"source": "hf://org/name"}, cache=cache))
    eventually(lambda: plane.find(CLAIMS, "stuck-cache") and jobs(plane))
    plane.api.delete(LLMSERVICES, plane.name, "stuck")
    assert plane.find(LLMSERVICES, "stuck") is None  # no finalizer keeps it
    eventually(lambda: not plane.find(CLAIMS, "stuck-cache") and not jobs(plane), 60)


def test_a_shared_download_goes_with_the_last_service_that_wants_it(plane: Namespace) -> None:
    make_claim(plane, "shared")
    for name in ("first", "second"):
        plane.create(wanting(name, cache={"claimName": "shared"}))
    eventually(lambda: owners(only_job(plane)) == {"first", "second"})
    plane.api.delete(LLMSERVICES, plane.name, "first")
    eventually(lambda: owners(only_job(plane)) == {"second"}, 60)
    plane.api.delete(LLMSERVICES, plane.name, "second")
    eventually(lambda: not jobs(plane), 60)


def test_a_cluster_without_nodes_is_said_in_the_schedulers_words(plane: Namespace) -> None:
    plane.create(manifest("nowhere"))
    assert "no nodes available to schedule pods" in plane.message("nowhere", "Unschedulable")
    assert plane.condition("nowhere", "Reconciling")["reason"] == "Unschedulable"


def test_a_gpu_that_no_node_has_is_named_with_the_number_wanted(plane: Namespace) -> None:
    with fake_node(plane.api, "small"):
        plane.create(manifest("greedy", resources={"gpu": {"count": 1, "resourceName": GPU}}))
        assert f"no node has 1 {GPU} free" in plane.message("greedy", "Unschedulable")


def test_a_quota_that_is_used_up_is_named(plane: Namespace) -> None:
    metadata = {"name": "none", "namespace": plane.name}
    plane.api.create(
        QUOTAS,
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": {"limits.memory": "1"}}},
    )
    try:
        plane.create(manifest("poor"))
        assert "exceeded quota: none" in plane.message("poor", "QuotaExceeded")
    finally:
        plane.api.delete(QUOTAS, plane.name, "none")


def test_a_claim_that_nobody_can_provide_is_named_with_what_to_set(plane: Namespace) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "bare"}}
    plane.api.request("POST", NODES, node)
    try:
        cache = {"volume": {"size": "1Gi", "storageClassName": "absent"}}
        plane.create(manifest("empty", model={"source": "hf://org/name"}, cache=cache))
        message = plane.message("empty", "ClaimPending")
        assert "claim empty-cache (of storage class absent, ReadWriteMany) has no volume yet" in message
        plane.create(manifest("lost", model={"source": "pvc://absent/model"}))
        assert "claim absent" in plane.message("lost", "ClaimNotFound")
    finally:
        plane.api.request("DELETE", f"{NODES}/bare")
