"""Groups of pods among nodes of 8 GPUs that kwok plays: where they land, what they wait for, and when a node goes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from e2e.cluster.addons.kwok import FAKE, Kwok
from e2e.cluster.kubectl import Kubectl
from e2e.llmservice import LLMService, until

pytestmark = pytest.mark.usefixtures("lws", "operator")

PRODUCT, OTHER_PRODUCT = "NVIDIA-H100-80GB-HBM3", "NVIDIA-L4"
RACK = "topology.kubernetes.io/rack"
GROUP = "leaderworkerset.sigs.k8s.io/group-index"
NEWER = {"type": "vllm", "image": "vllm/vllm-openai:v0.32.1"}
FAKE_ALLOWED = [{"key": FAKE, "operator": "Exists", "effect": "NoSchedule"}]


class Fleet:
    """The fake nodes of one test, which are gone with it."""

    def __init__(self, kwok: Kwok) -> None:
        self._kwok = kwok
        self._names: list[str] = []

    def add(self, *names: str, product: str = PRODUCT, rack: str = "one", **labels: str) -> None:
        for name in names:
            self._names.append(name)
            usual = {"nvidia.com/gpu.product": product, "nvidia.com/gpu.memory": "81559", RACK: rack}
            self._kwok.add_node(name, labels={**usual, **labels})

    def remove(self, *names: str) -> None:
        for name in names:
            self._kwok.remove_node(name)

    def close(self) -> None:
        self.remove(*self._names)


@pytest.fixture
def fleet(kwok: Kwok, kubectl: Kubectl, namespace: str) -> Iterator[Fleet]:
    """No node at first. Whatever was placed is gone before its nodes are, since only they let go of it at once."""
    fleet = Fleet(kwok)
    yield fleet
    kubectl("delete", "llmservices", "--all", "-n", namespace)
    gone = ("get", "pods", "-n", namespace, "-o", "name")
    until("all pods gone", lambda: not kubectl(*gone).strip(), 60)
    fleet.close()


def spec(**changes: Any) -> dict[str, Any]:
    """Each replica is two pods of 8 GPUs."""
    base: dict[str, Any] = {
        "model": {"source": "hf://quire/large", "name": "large"},
        "engine": {"type": "vllm", "image": "vllm/vllm-openai:v0.32.0"},
        "parallelism": {"tensor": 8, "pipeline": 2, "nodes": 2},
        "resources": {"gpu": {"product": PRODUCT}, "cpu": "32", "memory": "512Gi", "sharedMemory": "64Gi"},
        "scheduling": {"tolerations": FAKE_ALLOWED},
        "rollout": {"drainSeconds": 0},
        "replicas": 1,
    }
    return base | changes


def placed(service: LLMService) -> dict[str, list[str]]:
    """Nodes of each group's pods that have one and do not leave it, by the number of the group."""
    groups: dict[str, list[str]] = {}
    for pod in service.pods():
        nodes = groups.setdefault(pod["metadata"]["labels"][GROUP], [])
        if "nodeName" in pod["spec"] and "deletionTimestamp" not in pod["metadata"]:
            nodes.append(pod["spec"]["nodeName"])
    return {group: sorted(nodes) for group, nodes in groups.items()}


def images(service: LLMService) -> list[str]:
    """Of each pod that does not leave."""
    there = [pod for pod in service.pods() if "deletionTimestamp" not in pod["metadata"]]
    return [pod["spec"]["containers"][0]["image"] for pod in there]


def uids(service: LLMService) -> set[str]:
    """Of the pods that do not leave."""
    return {pod["metadata"]["uid"] for pod in service.pods() if "deletionTimestamp" not in pod["metadata"]}


def wait_settled(service: LLMService, seconds: float = 5) -> None:
    """Until each pod has run so long, and LeaderWorkerSet has taken notice of it.

    One that goes before that was once not missed: its group stayed as it was.
    """

    def settled() -> bool:
        latest = max(datetime.fromisoformat(pod["status"]["startTime"]) for pod in service.pods())
        return (datetime.now(UTC) - latest).total_seconds() > seconds

    until("pods that have run for a while", settled)


def says(service: LLMService, reason: str, *words: str) -> str:
    """The message of Ready, once it has the reason and the words."""

    def found() -> str | None:
        condition = service.condition("Ready")
        message = str(condition.get("message"))
        return message if condition.get("reason") == reason and all(word in message for word in words) else None

    try:
        return str(until(f"Ready says {reason} and {words}", found))
    except AssertionError as error:
        raise AssertionError(f"{error}\n{service.describe()}") from None


def until_whole_again(service: LLMService, before: set[str], nodes: list[str], seconds: float = 120) -> None:
    """All pods are new, on these nodes, two in each group, and serve.

    All of it at once: LeaderWorkerSet may make a group a second time when it sees the last of its old pods go.
    """

    def found() -> bool:
        groups = placed(service).values()
        whole = all(len(group) == 2 for group in groups) and sorted(itertools.chain(*groups)) == nodes
        return whole and not uids(service) & before and service.is_ready()

    try:
        until(f"all pods new, on {nodes} and ready", found, seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}; were {before}, are {uids(service)}\n{service.describe()}") from None


def test_a_group_has_a_node_for_each_pod_and_one_that_does_not_fit_says_what_is_missing(
    kubectl: Kubectl, namespace: str, fleet: Fleet
) -> None:
    fleet.add("fake-a", "fake-b", "fake-c")
    fleet.add("fake-other", product=OTHER_PRODUCT)
    service = LLMService(kubectl, namespace, "large")
    service.apply(spec())
    service.wait_ready()
    (nodes,) = placed(service).values()
    assert len(nodes) == len(set(nodes)) == 2
    assert set(nodes) < {"fake-a", "fake-b", "fake-c"}
    for pod in service.pods():
        assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    status = service.get()["status"]
    assert (status["ready"], status["gpus"]) == ("1/1", 16)
    # It would be planned over its nodes; but no hub has such a model, where there is a hub at all.
    assert status["plan"]["verdict"] == "Skipped"
    assert status["plan"]["reason"] in ("HubUnreachable", "ModelGated", "ModelUnknownToHub")
    first = uids(service)

    service.apply(spec(replicas=2))
    (last,) = {"fake-a", "fake-b", "fake-c"} - set(nodes)
    message = says(service, "Unschedulable", f"1 of them on {last}")
    assert "group 1 serves with all its 2 pods of 8 nvidia.com/gpu" in message
    assert "where 8 nvidia.com/gpu wait for the rest" in message
    assert "no node that admits pod large-nodes-1-1 has 8 nvidia.com/gpu free" in message
    assert "3 Insufficient nvidia.com/gpu" in message
    assert service.condition("Available")["status"] == "True"
    assert service.condition("Reconciling")["status"] == "True"
    assert service.get()["status"]["ready"] == "1/2"

    fleet.add("fake-d")
    service.wait_ready()
    assert placed(service) == {"0": nodes, "1": sorted([last, "fake-d"])}
    assert first < uids(service)
    status = service.get()["status"]
    assert (status["ready"], status["gpus"]) == ("2/2", 32)


def test_selectors_taints_and_racks_are_heeded(kubectl: Kubectl, namespace: str, fleet: Fleet) -> None:
    fleet.add("fake-a", "fake-b", rack="one", pool="blue")
    fleet.add("fake-c", "fake-d", rack="two", pool="blue")
    fleet.add("fake-e", "fake-f", rack="two", pool="green")
    service = LLMService(kubectl, namespace, "large")
    apart = {"tensor": 8, "pipeline": 2, "nodes": 2, "exclusiveTopology": RACK}
    choosy = spec(parallelism=apart, replicas=2, scheduling={"nodeSelector": {"pool": "blue"}})
    service.apply(choosy)
    message = says(service, "Unschedulable", "6 node(s) had untolerated taint(s)", "none of which has a node")
    assert "node affinity/selector" in message
    assert "add to spec.scheduling.tolerations" in message

    service.apply({**choosy, "scheduling": {"nodeSelector": {"pool": "blue"}, "tolerations": FAKE_ALLOWED}})
    service.wait_ready()
    assert sorted(placed(service).values()) == [["fake-a", "fake-b"], ["fake-c", "fake-d"]]


def test_a_drained_node_hands_its_whole_group_to_others(kubectl: Kubectl, namespace: str, fleet: Fleet) -> None:
    fleet.add("fake-a", "fake-b")
    service = LLMService(kubectl, namespace, "large")
    service.apply(spec())
    service.wait_ready()
    wait_settled(service)
    fleet.add("fake-c")
    before = uids(service)
    kubectl("drain", "fake-a", "--delete-emptydir-data", "--ignore-daemonsets", "--timeout=60s")
    until_whole_again(service, before, ["fake-b", "fake-c"])


def test_nodes_that_vanish_take_their_whole_groups_along(kubectl: Kubectl, namespace: str, fleet: Fleet) -> None:
    """Of one group the leader's, of the other the worker's. Kubernetes itself takes a minute to give their pods up."""
    fleet.add("fake-a", "fake-b", "fake-c", "fake-d")
    service = LLMService(kubectl, namespace, "large")
    service.apply(spec(replicas=2))
    service.wait_ready()
    wait_settled(service)
    fleet.add("fake-e", "fake-f")
    before = uids(service)
    hosts = {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in service.pods()}
    lost = {hosts["large-nodes-0"], hosts["large-nodes-1-1"]}
    fleet.remove(*lost)
    left = {"fake-a", "fake-b", "fake-c", "fake-d", "fake-e", "fake-f"} - lost
    until_whole_again(service, before, sorted(left), 240)


def test_a_rollout_without_spare_nodes_says_so_and_goes_on_once_an_old_group_may_go(
    kubectl: Kubectl, namespace: str, fleet: Fleet
) -> None:
    fleet.add("fake-a", "fake-b", "fake-c", "fake-d")
    service = LLMService(kubectl, namespace, "large")
    service.apply(spec(replicas=2))
    service.wait_ready()
    before = uids(service)
    changed = spec(replicas=2, engine=NEWER)
    service.apply(changed)
    message = says(service, "NoGPUForSurge")
    assert "no node has 8 nvidia.com/gpu free for each of its 2 pods: 2 older replicas hold 32" in message
    assert service.condition("Available")["status"] == "True"
    assert before < uids(service)

    service.apply({**changed, "rollout": {"drainSeconds": 0, "maxSurge": 0, "maxUnavailable": 1}})
    service.wait_ready()
    until("every pod is of the new image", lambda: images(service) == [NEWER["image"]] * 4, 120)


def test_a_single_group_that_is_not_replaced_says_so_and_goes_on_once_it_may_go(
    kubectl: Kubectl, namespace: str, fleet: Fleet
) -> None:
    fleet.add("fake-a", "fake-b", "fake-c", "fake-d")
    service = LLMService(kubectl, namespace, "large")
    service.apply(spec())
    service.wait_ready()
    before = uids(service)
    changed = spec(engine=NEWER)
    service.apply(changed)
    says(service, "NoSurgeOfOneGroup", "write maxUnavailable 1")
    assert (service.condition("Stalled")["status"], service.condition("Available")["status"]) == ("True", "True")
    assert uids(service) == before

    service.apply({**changed, "rollout": {"drainSeconds": 0, "maxUnavailable": 1}})
    service.wait_ready()
    until("every pod is of the new image", lambda: images(service) == [NEWER["image"]] * 2, 120)


def test_pods_of_others_are_kept_away(kubectl: Kubectl, namespace: str, fleet: Fleet) -> None:
    fleet.add("fake-a")
    container = {"name": "x", "image": "x:1", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "stray"},
        "spec": {"containers": [container], "tolerations": tolerations, "nodeSelector": {RACK: "one"}},
    }
    kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(pod))
    waits = "jsonpath={.status.conditions[?(@.type=='PodScheduled')].message}"
    asked = ("get", "pod", "stray", "-n", namespace, "-o", waits)
    until("the pod refused", lambda: "1 node(s) had untolerated taint(s)" in kubectl(*asked))
    kubectl("delete", "pod", "stray", "-n", namespace)
