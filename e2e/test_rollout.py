"""Changes and deletions under load: nobody is cut off."""

from __future__ import annotations

import json
import time

from e2e.cluster.kubectl import Kubectl
from e2e.llmservice import LLMService, tiny_spec, until
from e2e.load import Load, LongStream


def ready_endpoints(kubectl: Kubectl, service: LLMService) -> int:
    found = json.loads(
        kubectl(
            "get",
            "endpointslices",
            "-n",
            service.namespace,
            "-l",
            f"kubernetes.io/service-name={service.name}",
            "-o",
            "json",
        )
    )
    endpoints = [e for item in found["items"] for e in item.get("endpoints") or []]
    return sum(bool(e["conditions"].get("ready")) for e in endpoints)


def test_a_rollout_fails_no_request_and_keeps_its_capacity(kubectl: Kubectl, namespace: str, operator: str) -> None:
    service = LLMService(kubectl, namespace, "steady")
    service.apply(tiny_spec(replicas=2))
    service.wait_ready()
    old_pods = {p["metadata"]["name"] for p in service.pods()}
    until("both endpoints", lambda: ready_endpoints(kubectl, service) == 2)

    with Load(service, clients=8) as load:
        until("every client answered", lambda: load.answered >= 16)
        service.apply(tiny_spec(replicas=2, engine={"maxNumSeqs": 32}))
        lowest = 2
        while True:
            lowest = min(lowest, ready_endpoints(kubectl, service))
            pods = service.pods()
            if len(pods) == 2 and not old_pods & {p["metadata"]["name"] for p in pods}:
                break
            assert not load.failures, load.failures[:3]
            time.sleep(0.2)
        service.wait_ready()
        before = load.answered
        until("the new pods answer", lambda: load.answered >= before + 16)
    assert load.failures == []
    assert lowest >= 2
    flags = service.pods()[0]["spec"]["containers"][0]["args"]
    assert "--max-num-seqs=32" in " ".join(flags).replace("--max-num-seqs 32", "--max-num-seqs=32")


def test_a_rollout_whose_pods_crash_stops_by_itself_and_fails_no_request(
    kubectl: Kubectl, namespace: str, operator: str
) -> None:
    service = LLMService(kubectl, namespace, "stopped")
    makes_room = {"maxSurge": 0, "maxUnavailable": 1}
    service.apply(tiny_spec(replicas=2, rollout=makes_room))
    service.wait_ready()
    until("both endpoints", lambda: ready_endpoints(kubectl, service) == 2)

    with Load(service, clients=4) as load:
        until("every client answered", lambda: load.answered >= 8)
        service.apply(tiny_spec(replicas=2, rollout=makes_room, engine={"args": ["--max-model-lenn=5"]}))
        until("the failing pod's place", lambda: ready_endpoints(kubectl, service) == 1)
        until(
            "the rollout stopped",
            lambda: service.condition("Ready").get("reason") == "RolloutStopped",
            300,
        )
        assert "did you mean --max-model-len?" in service.condition("Stalled")["message"]
        assert service.condition("Available")["status"] == "True"
        until("both endpoints again", lambda: ready_endpoints(kubectl, service) == 2, 120)
        until("the failing pod gone", lambda: len(service.pods()) == 2, 120)
        service.apply(tiny_spec(replicas=2, rollout=makes_room, engine={"maxNumSeqs": 32}))
        service.wait_ready(240)
        before = load.answered
        until("the new pods answer", lambda: load.answered >= before + 8)
    assert load.failures == []


def test_a_deleted_pod_finishes_its_streams_and_is_gone_when_they_end(
    kubectl: Kubectl, namespace: str, operator: str
) -> None:
    service = LLMService(kubectl, namespace, "leaving")
    service.apply(tiny_spec(replicas=2, rollout={"drainSeconds": 300}))
    service.wait_ready()
    until("both endpoints", lambda: ready_endpoints(kubectl, service) == 2)
    streams = [LongStream(service, max_tokens=1900) for _ in range(8)]
    until("every stream began", lambda: all(s.text or s.failure for s in streams))

    leaving = service.pods()[0]["metadata"]["name"]
    kubectl("delete", "pod", leaving, "-n", namespace, "--wait=false")
    with Load(service, clients=2) as load:
        for stream in streams:
            stream.join(300)
        ended = time.monotonic()
        until(
            "the deleted pod gone, long before its grace period",
            lambda: leaving not in {p["metadata"]["name"] for p in service.pods()},
            60,
        )
        assert time.monotonic() - ended < 60
    assert [s.failure for s in streams] == [None] * 8
    assert [s.finish_reason for s in streams] == ["length"] * 8
    assert load.failures == []
