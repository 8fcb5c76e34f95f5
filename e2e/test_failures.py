"""What goes wrong is named within 30 s, and the neighbour never notices."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("spec", "reason", "says"),
    [
        (tiny_spec(engine={"image": "quire/engine:no-such-tag"}), "ImagePullBackOff", "quire/engine:no-such-tag"),
        (
            tiny_spec(
                resources={"gpu": {"count": 1, "resourceName": "example.com/gpu"}, "cpu": "100m", "memory": "1Gi"}
            ),
            "Unschedulable",
            "no node has 1 example.com/gpu",
        ),
        (tiny_spec(engine={"args": ["--max-model-lenn=5"]}), "", "did you mean --max-model-len?"),
        (tiny_spec(model={"source": "image:///models/none"}), "ModelNotFound", "/models/none"),
    ],
    ids=["image", "gpus", "flag", "model"],
)
def test_the_condition_names_the_fault_and_the_neighbour_serves_on(
    kubectl: Kubectl, neighbour: LLMService, spec: dict[str, Any], reason: str, says: str
) -> None:
    before = [(p["metadata"]["name"], _restarts(p)) for p in neighbour.pods()]
    faulty = LLMService(kubectl, neighbour.namespace, "faulty")
    with Load(neighbour, clients=1) as load:
        faulty.apply(spec)
        condition = until(
            f"a condition that says {says}",
            lambda: next((c for c in [faulty.condition("Ready")] if says in c.get("message", "")), None),
            30,
        )
        assert condition["status"] == "False"
        if reason:
            assert condition["reason"] == reason, condition
        faulty.delete()
    assert load.failures == []
    assert [(p["metadata"]["name"], _restarts(p)) for p in neighbour.pods()] == before
    until("the faulty one gone", lambda: not faulty.pods(), 60)


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
