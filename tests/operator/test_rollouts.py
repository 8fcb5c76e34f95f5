"""Rollouts by the real controller manager and scheduler, on nodes whose pods do as a test says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from quire_operator.kubeapi.resources import DEPLOYMENTS, LLMSERVICES, PODS
from tests.operator.api_client import Namespace, Object, eventually
from tests.operator.fake_node import GPU, fake_node, serving, starting
from tests.operator.services import manifest

pytestmark = pytest.mark.control_plane

ONE_GPU = {"gpu": {"count": 1, "resourceName": GPU}}


@contextlib.contextmanager
def node(plane: Namespace, does: Callable[[Object], Object] = serving, *, gpus: int = 0) -> Iterator[None]:
    """The only node, on which all services of a test are gone before it is."""
    with fake_node(plane.api, "one", does, gpus=gpus):
        try:
            yield
        finally:
            for service in plane.api.list(LLMSERVICES, plane.name):
                plane.api.delete(LLMSERVICES, plane.name, service["metadata"]["name"])
            eventually(lambda: not plane.api.list(PODS, plane.name), 60)


def serve(plane: Namespace, name: str, **spec: Any) -> None:
    """Create the service and return when it is ready."""
    plane.create(manifest(name, **spec))
    plane.message(name, "Serving")


def pods(plane: Namespace, name: str) -> list[Object]:
    """Those that are not on their way out."""
    found = [pod for pod in plane.api.list(PODS, plane.name) if pod["metadata"]["name"].startswith(f"{name}-")]
    return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]


def names(found: list[Object]) -> set[str]:
    return {pod["metadata"]["name"] for pod in found}


def test_a_rollout_without_a_spare_gpu_says_so_and_goes_on_once_it_may_take_an_old_ones(plane: Namespace) -> None:
    with node(plane, gpus=2):
        serve(plane, "surge", resources=ONE_GPU, replicas=2)
        plane.change("surge", {"engine": {"maxNumSeqs": 9}})
        message = plane.message("surge", "NoGPUForSurge")
        assert f"no node has 1 {GPU} free for it: 2 older pods hold 2" in message
        assert plane.condition("surge", "Reconciling")["reason"] == "NoGPUForSurge"
        assert plane.condition("surge", "Available")["status"] == "True"

        plane.change("surge", {"rollout": {"maxSurge": 0, "maxUnavailable": 1}})
        plane.message("surge", "Serving")


def test_a_rollout_without_a_spare_gpu_is_stalled_after_its_deadline(plane: Namespace) -> None:
    with node(plane, gpus=1):
        serve(plane, "late", resources=ONE_GPU, rollout={"progressDeadlineSeconds": 3})
        plane.change("late", {"engine": {"maxNumSeqs": 9}})
        stalled = eventually(lambda: plane.condition("late", "Stalled"))
        assert stalled["reason"] == "NoGPUForSurge"
        assert stalled["message"].startswith("no progress for 3 s: a new pod must serve before an old one goes")
        assert plane.condition("late", "Available")["status"] == "True"


def test_a_replacement_of_all_pods_at_once_says_that_nothing_serves(plane: Namespace) -> None:
    loading = False
    with node(plane, lambda pod: starting(pod) if loading else serving(pod)):
        serve(plane, "all", replicas=2, rollout={"strategy": "Recreate"})
        loading = True
        plane.change("all", {"engine": {"maxNumSeqs": 9}})
        plane.message("all", "Recreating")
        eventually(lambda: plane.condition("all", "Available")["reason"] == "Recreating")
        loading = False
        plane.message("all", "Serving")


def test_a_restart_by_kubectl_replaces_the_pods_and_is_kept(plane: Namespace) -> None:
    with node(plane):
        serve(plane, "again")
        before = names(pods(plane, "again"))
        restarted = {"kubectl.kubernetes.io/restartedAt": "2026-01-01T00:00:00Z"}
        template = {"template": {"metadata": {"annotations": restarted}}}
        plane.api.patch(DEPLOYMENTS, plane.name, "again", {"spec": template})
        eventually(lambda: pods(plane, "again") and not before & names(pods(plane, "again")))
        plane.message("again", "Serving")
        plane.change("again", {"engine": {"maxNumSeqs": 9}})
        eventually(lambda: plane.status("again")["observedGeneration"] == 2)
        plane.message("again", "Serving")
        annotations = plane.get(DEPLOYMENTS, "again")["spec"]["template"]["metadata"]["annotations"]
        assert restarted.items() <= annotations.items()
