"""What goes wrong is named within 30 s, and the neighbour never notices."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.cluster.kubectl import Kubectl
from e2e.llmservice import LLMService, tiny_spec, until
from e2e.load import Load


@pytest.fixture(scope="module")
def neighbour(kubectl: Kubectl, module_namespace: str, operator: str) -> Iterator[LLMService]:
    service = LLMService(kubectl, module_namespace, "neighbour")
    service.apply(tiny_spec())
    service.wait_ready()
    yield service
    service.delete()


def custom(engine_command: list[str], **changes: Any) -> dict[str, Any]:
    """The spec of an engine that is one command in a small image."""
    engine = {"type": "custom", "image": "debian:bookworm-slim", "command": engine_command}
    return tiny_spec(engine=engine, **changes)


NOBODYS = "nobodys"
"""A storage class whose volumes somebody has to make, and nobody does."""


@pytest.fixture
def used_up_quota(kubectl: Kubectl, neighbour: LLMService) -> Iterator[None]:
    """A quota of the namespace that the neighbour alone all but uses up."""
    quota = ("quota", "tenant", "-n", neighbour.namespace)
    kubectl("create", *quota, "--hard=limits.memory=2Gi")
    until("the quota counted", lambda: kubectl("get", *quota, "-o", "jsonpath={.status.used}"))
    yield
    kubectl("delete", *quota)


@pytest.fixture
def unmade_volume(kubectl: Kubectl, neighbour: LLMService) -> Iterator[None]:
    """The claim `weights`, which is bound once a pod has a node, and to which no volume is ever bound."""
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": NOBODYS},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "weights", "namespace": neighbour.namespace},
        "spec": {
            "storageClassName": NOBODYS,
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    for made in (storage_class, claim):
        kubectl("apply", "--server-side", "-f", "-", input=json.dumps(made))
    yield
    kubectl("delete", "persistentvolumeclaim", "weights", "-n", neighbour.namespace, "--wait=false")
    kubectl("delete", "storageclass", NOBODYS)


@pytest.mark.parametrize(
    ("spec", "reason", "says", "beside"),
    [
        (
            tiny_spec(engine={"image": "quire/engine:no-such-tag"}),
            "ImagePullBackOff",
            ("quire/engine:no-such-tag", "Check spec.engine.image"),
            None,
        ),
        (
            tiny_spec(
                resources={"gpu": {"count": 1, "resourceName": "example.com/gpu"}, "cpu": "100m", "memory": "1Gi"}
            ),
            "Unschedulable",
            ("no node has 1 example.com/gpu", "Lower spec.resources, add a node, or free one"),
            None,
        ),
        (tiny_spec(engine={"args": ["--max-model-lenn=5"]}), "", ("did you mean --max-model-len?",), None),
        (tiny_spec(model={"source": "image:///models/none"}), "ModelNotFound", ("/models/none",), None),
        (
            tiny_spec(resources={"gpu": {"count": 0}, "cpu": "200m", "memory": "96Mi", "sharedMemory": "32Mi"}),
            "OOMKilled",
            ("needed more than its 96Mi of memory", "raise spec.resources.memory"),
            None,
        ),
        (
            tiny_spec(),
            "QuotaExceeded",
            ("exceeded quota: tenant", "Have the quota raised, or lower spec.resources or spec.replicas"),
            "used_up_quota",
        ),
        (
            tiny_spec(
                model={"source": "hf://quire/tiny"}, cache={"volume": {"size": "1Gi", "storageClassName": "absent"}}
            ),
            "ClaimPending",
            (
                "claim faulty-cache (of storage class absent, ReadWriteMany) has no volume yet",
                "set spec.cache.volume.storageClassName to a class that offers ReadWriteMany",
            ),
            None,
        ),
        (
            tiny_spec(model={"source": "pvc://weights/tiny"}),
            "ClaimPending",
            ("waits for its claim", "`kubectl describe pvc -n"),
            "unmade_volume",
        ),
        (
            tiny_spec(scheduling={"nodeSelector": {"pool": "large"}}),
            "Unschedulable",
            ("no node admits pod", "Check spec.scheduling.nodeSelector (pool=large)"),
            None,
        ),
        (
            tiny_spec(engine={"image": "quire/Engine:1"}),
            "InvalidImageName",
            ("'quire/Engine:1' is not the name of an image", "correct spec.engine.image"),
            None,
        ),
        (
            tiny_spec(engine={"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "x"}}}]}),
            "CreateContainerConfigError",
            ('secret "absent" not found', "Create what is missing, or correct its name in spec"),
            None,
        ),
        (
            custom(["no-such-program"]),
            "RunContainerError",
            ('"no-such-program": executable file not found', "Check spec.engine.image"),
            None,
        ),
        (
            custom(["sh", "-c", "echo cannot go on; exit 3"]),
            "EngineFailed",
            ("exited with code 3: cannot go on", "`kubectl logs"),
            None,
        ),
        (
            custom(["sh", "-c", "trap 'exit 0' TERM; sleep 600 & wait"], probes={"startupSeconds": 2}),
            "EngineFailed",
            ("It was stopped after", "spec.probes.startupSeconds is 2: raise that"),
            None,
        ),
    ],
    ids=[
        *("image", "gpus", "flag", "model", "memory", "quota", "class", "volume", "selector"),
        *("name", "secret", "program", "death", "patience"),
    ],
)
def test_the_condition_names_the_fault_and_the_neighbour_serves_on(
    request: pytest.FixtureRequest,
    kubectl: Kubectl,
    neighbour: LLMService,
    spec: dict[str, Any],
    reason: str,
    says: tuple[str, ...],
    beside: str | None,
) -> None:
    if beside:
        request.getfixturevalue(beside)
    before = [(p["metadata"]["name"], _restarts(p)) for p in neighbour.pods()]
    faulty = LLMService(kubectl, neighbour.namespace, "faulty")
    with Load(neighbour, clients=1) as load:
        faulty.apply(spec)
        try:
            condition = until(f"a condition that says {says[0]}", lambda: _ready_saying(faulty, says[0]), 30)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{faulty.describe()}") from None
        assert condition["status"] == "False"
        if reason:
            assert condition["reason"] == reason, condition
        assert [words for words in says if words not in condition["message"]] == [], condition
        faulty.delete()
    assert load.failures == []
    assert [(p["metadata"]["name"], _restarts(p)) for p in neighbour.pods()] == before
    until("the faulty one gone", lambda: not faulty.pods(), 60)


def _ready_saying(service: LLMService, words: str) -> dict[str, Any] | None:
    condition = service.condition("Ready")
    return condition if words in condition.get("message", "") else None


def _restarts(pod: dict[str, Any]) -> int:
    return sum(int(s["restartCount"]) for s in pod["status"]["containerStatuses"])


def test_an_operator_that_is_killed_converges_and_pods_never_notice(
    kubectl: Kubectl, namespace: str, operator: str
) -> None:
    service = LLMService(kubectl, namespace, "calm")
    service.apply(tiny_spec())
    service.wait_ready()
    before = {p["metadata"]["name"] for p in service.pods()}
    killed: set[str] = set()
    stop = threading.Event()

    def kill_now_and_then() -> None:
        while not stop.wait(1.7):
            killing = ("-l", "app.kubernetes.io/name=quire-operator", "--grace-period=0", "--force", "--wait=false")
            killed.update(kubectl.attempt("delete", "pod", "-n", operator, "-o", "name", *killing).stdout.split())

    killer = threading.Thread(target=kill_now_and_then)
    others = [LLMService(kubectl, namespace, f"other-{i}") for i in range(3)]
    with Load(service, clients=2) as load:
        killer.start()
        for other in others:
            other.apply(tiny_spec(suspend=True))
            time.sleep(1.3)
        others[0].delete()
        others[1].apply(tiny_spec(suspend=True, service={"port": 8123}))
        time.sleep(2)
        stop.set()
        killer.join()
        assert len(killed) >= 2
        service.apply(tiny_spec(model={"source": "image:///models/tiny", "name": "tiny"}, service={"port": 8000}))
        until("the suspended ones reported", lambda: others[1].condition("Ready").get("reason") == "Suspended", 90)
        until("the third reported too", lambda: others[2].condition("Ready").get("reason") == "Suspended", 60)
        service.wait_ready()
    assert load.failures == []
    assert {p["metadata"]["name"] for p in service.pods()} == before
    assert all(_restarts(p) == 0 for p in service.pods())
