"""Groups of pods in place of single ones and back: what is counted, what serves meanwhile, when the old ones go."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from quire_operator.builders.circumstances import EVERYTHING, Capabilities
from quire_operator.builders.identity import TEMPLATE_HASH
from quire_operator.builders.leader_worker_set import build_leader_worker_set
from quire_operator.kubeapi.resources import DEPLOYMENTS, LEADER_WORKER_SETS, LLMSERVICES, PODS
from quire_operator.kubeapi.trimming import trim_child
from quire_operator.reconcile.needed import still_needed
from quire_operator.reconcile.observation import Observation, fault_of, groups_late_in
from quire_operator.reconcile.replicas import count_replicas
from quire_operator.reconcile.workloads import missing_api
from tests.operator.api_client import Namespace, Object, eventually
from tests.operator.conftest import program_folder
from tests.operator.fake_node import crashing, fake_node, serving
from tests.operator.services import CIRCUMSTANCES, manifest, service

ENGINE = {"type": "custom", "image": "registry.example/engine:1", "command": ["serve"]}
PAIRS: dict[str, Any] = {"engine": ENGINE, "parallelism": {"tensor": 2, "nodes": 2}, "resources": {"gpu": {"count": 1}}}
ONE: dict[str, Any] = {"engine": ENGINE}
UID = "11111111-2222-3333-4444-555555555555"
DEPLOYMENT, GROUPS = ("Deployment", "llama"), ("LeaderWorkerSet", "llama-nodes")
INDEX = "leaderworkerset.sigs.k8s.io/group-index"
BROKEN = "registry.example/broken:1"
LATER_SECONDS = 90
"""The operator asks every 30 s which APIs there are."""


def groups(*, replicas: int = 2, existing: int = 2) -> Object:
    built = build_leader_worker_set(service(**PAIRS, replicas=replicas), CIRCUMSTANCES)
    assert built is not None
    return {**built, "status": {"replicas": existing, "readyReplicas": existing, "updatedReplicas": existing}}


def deployment(available: int, wanted: int = 2) -> Object:
    counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), available)
    owner = [{"controller": True, "uid": UID}]
    return {
        "metadata": {"name": "llama", "ownerReferences": owner, "generation": 1},
        "spec": {"replicas": wanted, "template": {"metadata": {}}},
        "status": {**counts, "observedGeneration": 1},
    }


def pod(name: str, *, ready: bool = True, old: bool = False, worker: bool = False, leaving: bool = False) -> Object:
    parts = groups()["spec"]["leaderWorkerTemplate"]
    metadata = parts["workerTemplate" if worker else "leaderTemplate"]["metadata"]
    annotations = {TEMPLATE_HASH: "old" if old else metadata["annotations"][TEMPLATE_HASH]}
    labels = {**metadata["labels"], "leaderworkerset.sigs.k8s.io/name": "llama-nodes", INDEX: name[1]}
    going = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if leaving else {}
    return {
        "metadata": {"name": name, "labels": labels, "annotations": annotations, **going},
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
    }


WORKERS = [pod(f"w{number}", worker=True) for number in range(2)]
LEADERS = [pod(f"l{number}") for number in range(2)]


def counted(children: dict[tuple[str, str], Object], pods: list[Object], spec: dict[str, Any] = PAIRS) -> Any:
    return count_replicas(service(**spec), children, pods)


def test_a_replica_is_a_group() -> None:
    found = counted({GROUPS: groups()}, [*LEADERS, *WORKERS])
    assert (found.wanted, found.existing, found.ready, found.updated) == (2, 2, 2, 2)
    assert found.rolled_out


@pytest.mark.parametrize(
    ("live", "pods"),
    [
        (groups(), [pod("l0"), pod("l1", old=True)]),
        (groups(), [pod("l0"), pod("l1", ready=False)]),
        (groups(), [pod("l0"), pod("l1", leaving=True)]),
        (groups(replicas=3), LEADERS),
        (groups(existing=3), [*LEADERS, pod("l2"), pod("w2", worker=True)]),
    ],
    ids=["an old leader", "a leader that loads", "a leader that leaves", "too few", "a surge"],
)
def test_a_rollout_of_groups_is_not_over_while(live: Object, pods: list[Object]) -> None:
    """The status of a LeaderWorkerSet may be that of the spec before: it has no observedGeneration."""
    assert not counted({GROUPS: live}, [*pods, *WORKERS]).rolled_out


@pytest.mark.parametrize(
    "worker",
    [
        [],
        [pod("w1", worker=True, ready=False)],
        [pod("w1", worker=True, leaving=True)],
        [pod("w1", worker=True, old=True)],
    ],
    ids=["no worker", "one that waits or starts", "one that leaves", "one of before"],
)
def test_a_leader_alone_is_no_group_that_serves(worker: list[Object]) -> None:
    """LeaderWorkerSet says so all the same: of workers it asks only whether they exist."""
    found = counted({GROUPS: groups()}, [*LEADERS, WORKERS[0], *worker])
    assert (found.ready, found.available, found.updated, found.rolled_out) == (1, 1, 2, False)


def test_what_serves_before_groups_do_is_counted_along() -> None:
    found = counted({GROUPS: groups(), DEPLOYMENT: deployment(2)}, [pod(f"l{n}", ready=False) for n in range(2)])
    assert (found.wanted, found.existing, found.ready, found.available) == (2, 4, 2, 2)
    assert found.older == 2
    assert not counted({GROUPS: groups(), DEPLOYMENT: deployment(2)}, LEADERS).rolled_out


def test_a_group_that_starts_anew_is_no_older_one() -> None:
    found = counted({GROUPS: groups()}, [pod("l0"), pod("l1", leaving=True)])
    assert (found.older, found.is_current, found.rolled_out) == (0, True, False)
    assert counted({GROUPS: groups()}, [pod("l0"), pod("l1", old=True)]).older == 1


def test_a_count_that_the_spec_leaves_open_is_that_of_the_workload_before() -> None:
    assert counted({DEPLOYMENT: deployment(3, wanted=3)}, []).wanted == 3


@pytest.mark.parametrize(
    ("spec", "children", "pods", "needed"),
    [
        (PAIRS, {DEPLOYMENT: deployment(2)}, [], [DEPLOYMENT]),
        (PAIRS, {DEPLOYMENT: deployment(2), GROUPS: groups()}, [*LEADERS, WORKERS[0]], [DEPLOYMENT]),
        (PAIRS, {DEPLOYMENT: deployment(2), GROUPS: groups()}, [*LEADERS, *WORKERS], []),
        (ONE, {GROUPS: groups()}, LEADERS, [GROUPS]),
        (ONE, {GROUPS: groups(), DEPLOYMENT: deployment(1)}, LEADERS, [GROUPS]),
        (ONE, {GROUPS: groups(), DEPLOYMENT: deployment(2)}, LEADERS, []),
        ({**PAIRS, "suspend": True}, {DEPLOYMENT: deployment(2)}, [], []),
        (ONE, {DEPLOYMENT: deployment(2)}, [], []),
    ],
    ids=[
        "no group yet",
        "too few",
        "all serve",
        "no pod yet",
        "too few pods",
        "all pods serve",
        "suspended",
        "as it is",
    ],
)
def test_the_workload_before_is_needed_until_the_other_serves_in_full(
    spec: dict[str, Any], children: dict[tuple[str, str], Object], pods: list[Object], needed: list[tuple[str, str]]
) -> None:
    assert list(still_needed(service(**spec), children, pods)) == needed


def test_a_worker_that_fails_is_what_is_wrong_with_its_group() -> None:
    failing = pod("llama-nodes-0-1", ready=False, worker=True)
    last = {"exitCode": 1, "message": "no answer from the leader"}
    failing["status"]["containerStatuses"] = [{"name": "engine", "ready": False, "lastState": {"terminated": last}}]
    found = fault_of(service(**PAIRS), Observation({GROUPS: groups()}, [pod("l0", ready=False), failing]))
    assert found is not None
    assert "pod llama-nodes-0-1 exited with code 1: no answer from the leader" in found.message


NO_GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


def unplaced(name: str, group: str, **facts: bool) -> Any:
    found = placed(name, group, **facts)
    del found["spec"]
    found["status"]["conditions"].append({"type": "PodScheduled", "reason": "Unschedulable", "message": NO_GPU})
    return found


def placed(name: str, group: str, node: str = "n1", **facts: bool) -> Object:
    found = pod(name, ready=False, **facts)
    found["metadata"]["labels"][INDEX] = group
    return {**found, "spec": {"nodeName": node}}


@pytest.mark.parametrize(
    ("pods", "has"),
    [
        (
            [placed("llama-nodes-1", "1"), placed("llama-nodes-0", "0", "n2")],
            "1 of them on n1, where 1 nvidia.com/gpu wait for the rest: no node",
        ),
        ([placed("llama-nodes-1", "1", leaving=True)], "none of which has a node: no node"),
    ],
    ids=["one waits for the other", "none has a node"],
)
def test_a_pod_that_finds_no_node_is_told_of_with_its_group(pods: list[Object], has: str) -> None:
    waiting = unplaced("llama-nodes-1-1", "1", worker=True)
    found = fault_of(service(**PAIRS), Observation({GROUPS: groups()}, [*pods, waiting]))
    assert found is not None
    assert found.reason == "Unschedulable"
    assert found.message.startswith(f"group 1 serves with all its 2 pods of 1 nvidia.com/gpu, {has}")
    assert "has 1 nvidia.com/gpu free for pod llama-nodes-1-1" in found.message


def test_a_group_that_surges_takes_gpus_for_each_of_its_pods() -> None:
    live = groups(replicas=1)
    pods = [pod("llama-nodes-0", old=True), unplaced("llama-nodes-1", "1")]
    found = fault_of(service(**PAIRS), Observation({GROUPS: live}, pods))
    assert found is not None
    assert found.reason == "NoGPUForSurge"
    assert "a new group must serve before an old one goes" in found.message
    assert "no node has 1 nvidia.com/gpu free for each of its 2 pods: 1 older replicas hold 2" in found.message


@pytest.mark.parametrize(
    ("live", "old", "rollout", "waits"),
    [
        (groups(replicas=1, existing=1), True, {}, True),
        (groups(replicas=1, existing=1), True, {"maxUnavailable": "50%"}, True),
        (groups(replicas=1, existing=1), True, {"maxUnavailable": 1}, False),
        (groups(replicas=1, existing=1), True, {"maxUnavailable": "100%"}, False),
        (groups(replicas=1, existing=1), True, {"strategy": "Recreate"}, False),
        (groups(replicas=1, existing=1), False, {}, False),
        (groups(replicas=1, existing=2), True, {}, False),
        (groups(replicas=2, existing=2), True, {}, False),
    ],
    ids=["as it is", "half of one", "one may go", "all may go", "at once", "the newest", "a second one", "one of two"],
)
def test_a_single_group_that_may_not_go_is_never_replaced_and_that_is_said(
    live: Object, old: bool, rollout: dict[str, Any], waits: bool
) -> None:
    pods = [pod("l0", old=old), pod("w0", worker=True, old=old)]
    found = fault_of(service(**PAIRS, rollout=rollout), Observation({GROUPS: live}, pods))
    assert (found is not None) is waits
    if found is not None:
        assert (found.reason, found.needs_action) == ("NoSurgeOfOneGroup", True)


def test_the_pod_that_serves_before_a_single_group_does_is_no_older_group() -> None:
    children = {GROUPS: groups(replicas=1, existing=0), DEPLOYMENT: deployment(1, wanted=1)}
    assert fault_of(service(**PAIRS), Observation(children, [])) is None


START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: int) -> str:
    return (START + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def standing(*, applied: int = 0, progressing: int | None = None, replicas: int = 2) -> Object:
    """Groups of which none serves, changed by us and taken up by LeaderWorkerSet so many seconds after the start."""
    live = trim_child(groups(replicas=replicas))
    if progressing is not None:
        told = {"type": "Progressing", "status": "True", "lastTransitionTime": at(progressing)}
        live["status"]["conditions"] = [told]
    return {**live, "appliedAt": at(applied)}


def ready_at(seconds: int, **kinds: Any) -> Object:
    found = pod("l0", **kinds)
    found["status"]["conditions"][0]["lastTransitionTime"] = at(seconds)
    return found


WAITING = [pod("l0", ready=False), pod("l1", ready=False)]


def late_in(live: Object, pods: list[Object], now: int, **spec: Any) -> float | None:
    """With a deadline of 100 s."""
    owner = service(**PAIRS, rollout={"progressDeadlineSeconds": 100}, **spec)
    return groups_late_in(owner, Observation({GROUPS: live}, pods, now=START.timestamp() + now))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (late_in(standing(), WAITING, 40), 60),
        (late_in(standing(), WAITING, 100), 0),
        (late_in(standing(), WAITING, 1000), 0),
        (late_in(standing(applied=500), WAITING, 550), 50),
        (late_in(standing(progressing=500), WAITING, 550), 50),
        (late_in(standing(), [ready_at(500, old=True), pod("l1", ready=False)], 550), 50),
        (late_in(standing(), [*WAITING, ready_at(500, worker=True)], 550), 0),
        (late_in(standing(), [*LEADERS, *WORKERS], 550), None),
        (late_in(standing(replicas=3), [*LEADERS, *WORKERS], 550), None),
        (late_in(standing(replicas=3), [*LEADERS, *WORKERS, pod("l2", old=True, ready=False)], 550), 0),
    ],
    ids=[
        "a start",
        "a start that has taken too long",
        "and goes on",
        "an edit",
        "one that is woken, or lost a node",
        "a leader that is ready",
        "a worker, which is ready at once",
        "all serve",
        "one more is wanted",
        "an old one is left",
    ],
)
def test_groups_that_make_no_progress_are_late(found: float | None, expected: float | None) -> None:
    assert found == expected


def test_late_groups_are_stalled_and_it_is_said_where_to_look() -> None:
    now = START.timestamp() + 1000
    owner = service(**PAIRS, rollout={"progressDeadlineSeconds": 100})
    found = fault_of(owner, Observation({GROUPS: standing()}, WAITING, now=now))
    assert found is not None
    assert (found.reason, found.needs_action) == ("ProgressDeadlineExceeded", True)
    assert "no progress for 100 s" in found.message
    assert "made anew with all its pods" in found.message


def test_when_we_last_changed_something_is_read_from_what_the_api_server_notes() -> None:
    notes = [("quire-operator", "Apply", 5), ("quire-operator", "Update", 9), ("lws", "Apply", 8)]
    fields = [{"manager": who, "operation": how, "time": at(when)} for who, how, when in notes]
    live = groups()
    live["metadata"]["managedFields"] = fields
    assert trim_child(live)["appliedAt"] == at(5)
    assert trim_child(groups())["appliedAt"] is None


def test_without_its_api_a_group_is_refused_with_the_next_step() -> None:
    refusal = missing_api(service(**PAIRS).spec, Capabilities())
    assert refusal is not None
    assert refusal.reason == "LeaderWorkerSetMissing"
    assert "install it from https://lws.sigs.k8s.io, or write 1" in refusal.message
    assert missing_api(service(**PAIRS).spec, EVERYTHING) is None
    assert missing_api(service().spec, Capabilities()) is None


DEFINITION = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def install(plane: Namespace) -> None:
    """The CRD alone: what its controller does, `groups_serve` does."""
    (file,) = program_folder("lws-crds").glob("*.yaml")
    body = yaml.safe_load(file.read_text())
    plane.api.apply(f"{DEFINITION}/{body['metadata']['name']}", body)
    eventually(lambda: plane.api.request("GET", LEADER_WORKER_SETS.path()))


@pytest.fixture
def node(plane: Namespace) -> Iterator[None]:
    """The only node, on which all services of a test are gone before it is."""
    with fake_node(plane.api, "one", lambda pod: crashing(pod) if BROKEN in str(pod["spec"]) else serving(pod), gpus=8):
        yield
        for owner in plane.api.list(LLMSERVICES, plane.name):
            plane.api.delete(LLMSERVICES, plane.name, owner["metadata"]["name"])
        for left in plane.api.list(PODS, plane.name):
            if "leaderworkerset.sigs.k8s.io/name" in left["metadata"].get("labels", {}):
                plane.api.delete(PODS, plane.name, left["metadata"]["name"])
        eventually(lambda: not plane.api.list(PODS, plane.name), 60)


def groups_serve(plane: Namespace, name: str) -> None:
    """What LeaderWorkerSet's controller would make of it, and report."""
    count = plane.get(LEADER_WORKER_SETS, f"{name}-nodes")["spec"]["replicas"]
    for index in range(count):
        add_group(plane, name, index)
    status = {"replicas": count, "readyReplicas": count, "updatedReplicas": count}
    plane.api.set_status(LEADER_WORKER_SETS, plane.name, f"{name}-nodes", status)


def add_group(plane: Namespace, name: str, index: int) -> None:
    """The pods of one, as the templates are."""
    live = plane.get(LEADER_WORKER_SETS, f"{name}-nodes")
    parts = live["spec"]["leaderWorkerTemplate"]
    for kind in ("leader", "worker"):
        metadata = parts[f"{kind}Template"]["metadata"]
        labels = {"leaderworkerset.sigs.k8s.io/name": live["metadata"]["name"], INDEX: str(index)}
        plane.api.create(
            PODS,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": f"{live['metadata']['name']}-{index}{'-1' if kind == 'worker' else ''}",
                    "namespace": plane.name,
                    "labels": {**metadata["labels"], **labels},
                    "annotations": metadata["annotations"],
                },
                "spec": {"containers": [{"name": "engine", "image": image_of(live)}]},
            },
        )


def image_of(live: Object) -> str:
    found: str = live["spec"]["leaderWorkerTemplate"]["leaderTemplate"]["spec"]["containers"][0]["image"]
    return found


@pytest.mark.control_plane
def test_groups_wait_for_their_api_and_what_serves_goes_on(plane: Namespace, node: None) -> None:
    plane.create(manifest("early", **ONE))
    plane.message("early", "Serving")
    plane.change("early", PAIRS)
    assert "install it from https://lws.sigs.k8s.io" in plane.message("early", "LeaderWorkerSetMissing")
    assert plane.condition("early", "Accepted")["reason"] == "LeaderWorkerSetMissing"
    assert plane.condition("early", "Available")["status"] == "True"

    install(plane)
    eventually(lambda: plane.find(LEADER_WORKER_SETS, "early-nodes"), LATER_SECONDS)
    plane.message("early", "RollingOut", LATER_SECONDS)


@pytest.mark.control_plane
def test_single_pods_serve_until_as_many_groups_do_and_the_other_way_round(plane: Namespace, node: None) -> None:
    install(plane)
    plane.create(manifest("grown", **ONE))
    eventually(lambda: plane.find(DEPLOYMENTS, "grown"))
    plane.api.patch(DEPLOYMENTS, plane.name, "grown", {"spec": {"replicas": 3}})
    eventually(lambda: plane.status("grown").get("ready") == "3/3")

    plane.change("grown", PAIRS)
    made = eventually(lambda: plane.find(LEADER_WORKER_SETS, "grown-nodes"), LATER_SECONDS)
    assert made["spec"]["replicas"] == 3
    plane.message("grown", "RollingOut", LATER_SECONDS)
    assert plane.condition("grown", "Available")["status"] == "True"
    assert plane.find(DEPLOYMENTS, "grown")
    groups_serve(plane, "grown")
    eventually(lambda: plane.find(DEPLOYMENTS, "grown") is None)
    plane.message("grown", "Serving")
    assert plane.status("grown")["ready"] == "3/3"

    plane.change("grown", {"parallelism": None, "resources": {"gpu": {"count": 0}}})
    back = eventually(lambda: plane.find(DEPLOYMENTS, "grown"))
    assert back["spec"]["replicas"] == 3
    eventually(lambda: plane.find(LEADER_WORKER_SETS, "grown-nodes") is None, 60)
    plane.message("grown", "Serving")
    assert plane.get(DEPLOYMENTS, "grown")["status"]["availableReplicas"] == 3


@pytest.mark.control_plane
def test_groups_of_which_none_comes_to_serve_are_stalled_at_the_deadline(plane: Namespace, node: None) -> None:
    install(plane)
    plane.create(manifest("stuck", **PAIRS, rollout={"progressDeadlineSeconds": 4}))
    assert "no progress for 4 s" in plane.message("stuck", "ProgressDeadlineExceeded", LATER_SECONDS)
    assert plane.condition("stuck", "Stalled")["status"] == "True"


@pytest.mark.control_plane
def test_a_rollout_of_groups_that_fail_is_stopped_until_the_next_edit(plane: Namespace, node: None) -> None:
    def rolling() -> Object:
        found: Object = plane.get(LEADER_WORKER_SETS, "held-nodes")["spec"]["rolloutStrategy"]
        return {"partition": 0, **found["rollingUpdateConfiguration"]}

    install(plane)
    plane.create(manifest("held", **PAIRS, replicas=2, rollout={"progressDeadlineSeconds": 4}))
    eventually(lambda: plane.find(LEADER_WORKER_SETS, "held-nodes"), LATER_SECONDS)
    groups_serve(plane, "held")
    plane.message("held", "Serving")
    assert rolling() == {"partition": 0, "maxSurge": 1, "maxUnavailable": 0}

    plane.change("held", {"engine": {"image": BROKEN}})
    eventually(lambda: image_of(plane.get(LEADER_WORKER_SETS, "held-nodes")) == BROKEN)
    add_group(plane, "held", 2)
    message = plane.message("held", "RolloutStopped")
    assert "pod held-nodes-2" in message
    assert "2 of 2 replicas serve as before" in message
    assert plane.condition("held", "Available")["status"] == "True"
    eventually(lambda: rolling() == {"partition": 1_000_000, "maxSurge": 0, "maxUnavailable": 1})
    plane.change("held", {"replicas": 3})
    eventually(lambda: plane.get(LEADER_WORKER_SETS, "held-nodes")["spec"]["replicas"] == 3)
    assert plane.condition("held", "Ready")["reason"] == "RolloutStopped"
    assert rolling()["partition"] == 1_000_000

    plane.change("held", {"engine": {"image": "registry.example/engine:2"}})
    eventually(lambda: rolling() == {"partition": 0, "maxSurge": 1, "maxUnavailable": 0})
    annotations = plane.get(LEADER_WORKER_SETS, "held-nodes")["metadata"]["annotations"]
    assert "serving.quire.dev/stopped-rollout" not in annotations


@pytest.mark.control_plane
def test_a_group_is_suspended_with_all_its_pods(plane: Namespace, node: None) -> None:
    install(plane)
    plane.create(manifest("resting", **PAIRS))
    eventually(lambda: plane.find(LEADER_WORKER_SETS, "resting-nodes"), LATER_SECONDS)
    plane.change("resting", {"suspend": True})
    eventually(lambda: plane.find(LEADER_WORKER_SETS, "resting-nodes") is None)
    plane.message("resting", "Suspended")
