"""Rollouts by the real controller manager and scheduler, on nodes whose pods do as a test says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.kubectl import Kubectl
from quire_operator.kubeapi.resources import DEPLOYMENTS, EVENTS, LLMSERVICES, PODS
from tests.operator.api_client import Namespace, Object, eventually
from tests.operator.fake_node import GPU, crashing, fake_node, serving, starting, unpullable
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
        assert f"no node has 1 {GPU} free for it: 2 older replicas hold 2" in message
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


BROKEN = "registry.example/broken:1"


def by_image(pod: Object) -> Object:
    """Pods of the broken image fail again and again; all others serve."""
    return crashing(pod) if pod["spec"]["containers"][0]["image"] == BROKEN else serving(pod)


def image(plane: Namespace, name: str) -> str:
    found: str = plane.get(DEPLOYMENTS, name)["spec"]["template"]["spec"]["containers"][0]["image"]
    return found


def test_a_rollout_whose_pods_crash_is_stopped_and_frees_its_gpus(plane: Namespace) -> None:
    with node(plane, by_image, gpus=4):
        serve(plane, "bad", resources=ONE_GPU, replicas=3, rollout={"maxUnavailable": 1})
        before, good = names(pods(plane, "bad")), image(plane, "bad")
        plane.change("bad", {"engine": {"image": BROKEN}})
        message = plane.message("bad", "RolloutStopped")
        assert "ModelNotFound: pod bad-" in message
        assert "kubectl annotate llmservice/bad -n real --overwrite serving.quire.dev/retry=" in message
        assert image(plane, "bad") == good
        eventually(lambda: plane.status("bad").get("ready") == "3/3")
        assert len(before & names(pods(plane, "bad"))) >= 2, "no more than maxUnavailable old pods went"
        eventually(lambda: len(pods(plane, "bad")) == 3)
        assert [plane.condition("bad", kind)["status"] for kind in ("Ready", "Available", "Stalled")] == [
            "False",
            "True",
            "True",
        ]
        assert plane.status("bad")["updatedReplicas"] == 0


def test_a_stopped_rollout_can_be_scaled_and_is_not_tried_again_by_that(plane: Namespace) -> None:
    with node(plane, by_image):
        serve(plane, "held", replicas=1)
        good = image(plane, "held")
        plane.change("held", {"engine": {"image": BROKEN}})
        plane.message("held", "RolloutStopped")
        plane.change("held", {"replicas": 3})
        eventually(lambda: plane.status("held").get("ready") == "3/3")
        assert plane.condition("held", "Ready")["reason"] == "RolloutStopped"
        assert image(plane, "held") == good
        assert {pod["spec"]["containers"][0]["image"] for pod in pods(plane, "held")} == {good}


def test_the_next_edit_resumes_a_stopped_rollout(plane: Namespace) -> None:
    with node(plane, by_image):
        serve(plane, "mended")
        plane.change("mended", {"engine": {"image": BROKEN}})
        plane.message("mended", "RolloutStopped")
        plane.change("mended", {"engine": {"image": "registry.example/mended:1"}})
        plane.message("mended", "Serving")
        assert image(plane, "mended") == "registry.example/mended:1"
        deployment = plane.get(DEPLOYMENTS, "mended")
        assert "serving.quire.dev/stopped-rollout" not in deployment["metadata"]["annotations"]


def test_the_retry_annotation_tries_the_same_again(plane: Namespace) -> None:
    is_there = False
    with node(plane, lambda pod: serving(pod) if is_there else by_image(pod)):
        serve(plane, "pushed")
        plane.change("pushed", {"engine": {"image": BROKEN}})
        plane.message("pushed", "RolloutStopped")
        is_there = True
        retry = {"metadata": {"annotations": {"serving.quire.dev/retry": "1"}}}
        plane.api.patch(LLMSERVICES, plane.name, "pushed", retry)
        plane.message("pushed", "Serving")
        assert image(plane, "pushed") == BROKEN


def test_an_image_that_cannot_be_pulled_stops_the_rollout_at_its_deadline(plane: Namespace) -> None:
    def pull_fails(pod: Object) -> Object:
        return unpullable(pod) if pod["spec"]["containers"][0]["image"] == BROKEN else serving(pod)

    with node(plane, pull_fails):
        serve(plane, "absent", rollout={"progressDeadlineSeconds": 5})
        plane.change("absent", {"engine": {"image": BROKEN}})
        assert "ImagePullBackOff: pod absent-" in plane.message("absent", "RolloutStopped")
        eventually(lambda: len(pods(plane, "absent")) == 1)


def test_a_first_rollout_that_crashes_is_left_to_kubernetes(plane: Namespace) -> None:
    with node(plane, by_image):
        plane.create(manifest("first", engine={"image": BROKEN}))
        plane.message("first", "ModelNotFound")
        assert image(plane, "first") == BROKEN


def test_an_undo_by_kubectl_is_put_back_and_told(plane: Namespace, controllers: ControlPlane) -> None:
    kubectl = Kubectl(controllers.kubeconfig)
    with node(plane):
        serve(plane, "undone", engine={"image": "registry.example/old:1"})
        plane.change("undone", {"engine": {"image": "registry.example/new:1"}})
        eventually(lambda: image(plane, "undone") == "registry.example/new:1")
        plane.message("undone", "Serving")
        kubectl("rollout", "undo", "deployment/undone", "-n", plane.name)

        def told() -> list[str]:
            events = plane.api.list(EVENTS, plane.name)
            return [event["message"] for event in events if event["reason"] == "HandEditUndone"]

        (message,) = eventually(told)
        assert "changed spec.template." in message
        assert "Deployment undone, and it is put back: change the LLMService" in message
        eventually(lambda: image(plane, "undone") == "registry.example/new:1")
        plane.message("undone", "Serving")
        assert {pod["spec"]["containers"][0]["image"] for pod in pods(plane, "undone")} == {"registry.example/new:1"}


def test_an_edit_of_the_service_is_no_edit_by_hand(plane: Namespace) -> None:
    with node(plane):
        serve(plane, "edited")
        plane.change("edited", {"engine": {"maxNumSeqs": 9}})
        eventually(lambda: plane.status("edited")["observedGeneration"] == 2)
        plane.message("edited", "Serving")
        about = [e for e in plane.api.list(EVENTS, plane.name) if e["involvedObject"]["name"] == "edited"]
        assert "HandEditUndone" not in {event["reason"] for event in about}
