"""Which optional APIs there are, asked of a real API server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from e2e.cluster.control_plane import ControlPlane
from quire_operator.builders.circumstances import EVERYTHING, Capabilities
from quire_operator.kubeapi.client import Client
from quire_operator.run.discovery import Discovery, capabilities_of
from tests.operator.api_client import ApiClient

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def group(name: str, version: str, *plurals: str) -> dict[str, Any]:
    versions = [{"version": version, "resources": [{"resource": plural} for plural in plurals]}]
    return {"metadata": {"name": name}, "versions": versions}


def test_a_cluster_is_credited_with_what_it_serves_in_the_version_that_is_used() -> None:
    served = [
        group("keda.sh", "v1alpha1", "scaledobjects", "scaledjobs"),
        group("monitoring.coreos.com", "v1", "servicemonitors", "prometheusrules"),
        group("leaderworkerset.x-k8s.io", "v1", "leaderworkersets"),
        group("custom.metrics.k8s.io", "v1beta1"),
    ]
    assert capabilities_of({"items": served}) == EVERYTHING
    older = [group("keda.sh", "v1alpha2", "scaledobjects"), group("monitoring.coreos.com", "v1", "podmonitors")]
    assert capabilities_of({"items": older}) == Capabilities()


@pytest.mark.control_plane
async def test_an_api_that_is_installed_or_removed_is_noticed(
    control_plane: ControlPlane, api: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    changes: list[Capabilities] = []
    async with Client() as client, asyncio.timeout(60):
        discovery = Discovery(client, lambda: changes.append(discovery.capabilities), seconds=0.2)
        asking = asyncio.create_task(discovery.run())
        await discovery.first()
        before = discovery.capabilities
        await asyncio.to_thread(api.apply, f"{DEFINITIONS}/leaderworkersets.leaderworkerset.x-k8s.io", definition())
        await discovery.until("leader_worker_sets", served=True)
        await asyncio.to_thread(api.request, "DELETE", f"{DEFINITIONS}/leaderworkersets.leaderworkerset.x-k8s.io")
        await discovery.until("leader_worker_sets", served=False)
        asking.cancel()
    assert not before.leader_worker_sets
    assert [state.leader_worker_sets for state in changes] == [True, False]


def definition() -> dict[str, Any]:
    group = "leaderworkerset.x-k8s.io"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"leaderworkersets.{group}",
            # of a protected group: what this annotation says, the API server wants to be told
            "annotations": {"api-approved.kubernetes.io": "unapproved, a test"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": "LeaderWorkerSet", "plural": "leaderworkersets"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }
