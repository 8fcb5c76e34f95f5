"""Replicas of several pods, by LeaderWorkerSet; our own image plays an engine whose ranks are on two nodes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from e2e.cluster.kubectl import Kubectl
from e2e.llmservice import LLMService, tiny_spec, until
from e2e.load import Load

pytestmark = pytest.mark.usefixtures("lws")

RANKS = """\
if [ "${NODE_RANK:-0}" = 0 ]; then
  exec quire-engine serve --model=$(MODEL) --served-model-name=$(SERVED_MODEL_NAME) --port=$(PORT) --device=cpu
fi
until python3 -c 'import sys, socket; socket.getaddrinfo(sys.argv[1], 80)' "$LEADER_ADDRESS"; do sleep 0.2; done
while [ ! -e /tmp/fail ]; do sleep 0.2; done
exit 4
"""
"""The leader serves; a worker finds its leader, and goes on until it is told to fail."""


KILL_ENGINE = """
import os
for pid in open("/proc/1/task/1/children").read().split():
    os.kill(int(pid), 9)
"""
"""In a pod of Quire's own engine, where the server is process 1."""


def spec(image: str, nodes: int, **changes: Any) -> dict[str, Any]:
    drain = {"sleep": None, "exec": {"command": ["quire-engine", "drain"]}}
    return tiny_spec(
        engine={"type": "custom", "image": image, "command": ["sh", "-c", RANKS]},
        parallelism={"nodes": nodes},
        podTemplate={"spec": {"containers": [{"name": "engine", "lifecycle": {"preStop": drain}}]}},
        **changes,
    )


def uids(service: LLMService) -> dict[str, str]:
    """Of the pods that are not on their way out, by name."""
    found = [pod["metadata"] for pod in service.pods()]
    return {pod["name"]: pod["uid"] for pod in found if "deletionTimestamp" not in pod}


def endpoints(kubectl: Kubectl, service: LLMService) -> list[str]:
    """Names of the pods behind its Service."""
    label = f"kubernetes.io/service-name={service.name}"
    found = json.loads(kubectl("get", "endpointslices", "-n", service.namespace, "-l", label, "-o", "json"))
    ready = [e for item in found["items"] for e in item.get("endpoints") or [] if e["conditions"].get("ready")]
    return sorted(endpoint["targetRef"]["name"] for endpoint in ready)


def greeted(service: LLMService) -> str | None:
    """What the model answers to a greeting."""
    messages: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Hello"}]
    answer = service.client().chat.completions.create(model="tiny", messages=messages, max_tokens=8, temperature=0)
    return answer.choices[0].message.content


def test_a_group_serves_by_its_leader_and_starts_anew_as_a_whole_when_a_worker_fails(
    kubectl: Kubectl, namespace: str, operator: str, engine_image: str
) -> None:
    service = LLMService(kubectl, namespace, "pair")
    service.apply(spec(engine_image, 2))
    service.wait_ready(180)
    before = uids(service)
    assert sorted(before) == ["pair-nodes-0", "pair-nodes-0-1"]
    assert endpoints(kubectl, service) == ["pair-nodes-0"]
    assert service.client().completions.create(model="tiny", prompt="Return", max_tokens=8).choices[0].text
    assert service.get()["status"]["ready"] == "1/1"

    kubectl("exec", "pair-nodes-0-1", "-n", namespace, "--", "touch", "/tmp/fail")
    until(
        "both pods made anew",
        lambda: sorted(uids(service)) == sorted(before) and not set(before.values()) & set(uids(service).values()),
        180,
    )
    service.wait_ready(180)
    assert service.client().completions.create(model="tiny", prompt="Return", max_tokens=8).choices[0].text


def test_quires_own_ranks_serve_over_two_pods_and_end_together(
    kubectl: Kubectl, namespace: str, operator: str, engine_image: str
) -> None:
    """Two ranks on the CPU share each layer, one in each pod."""
    service = LLMService(kubectl, namespace, "ranks")
    service.apply(tiny_spec(parallelism={"tensor": 2, "nodes": 2}))
    service.wait_ready(240)
    before = uids(service)
    assert sorted(before) == ["ranks-nodes-0", "ranks-nodes-0-1"]
    answer = greeted(service)
    assert answer

    # A rank that is killed takes both pods along, and the group starts anew.
    kubectl("exec", "ranks-nodes-0-1", "-n", namespace, "--", "python3", "-c", KILL_ENGINE)
    until(
        "both pods made anew",
        lambda: sorted(uids(service)) == sorted(before) and not set(before.values()) & set(uids(service).values()),
        180,
    )
    service.wait_ready(240)
    assert greeted(service) == answer


def test_moving_from_one_pod_to_a_group_and_back_fails_no_request(
    kubectl: Kubectl, namespace: str, operator: str, engine_image: str
) -> None:
    service = LLMService(kubectl, namespace, "moved")
    service.apply(spec(engine_image, 1))
    service.wait_ready()
    with Load(service, clients=2) as load:
        until("every client answered", lambda: load.answered >= 4)
        service.apply(spec(engine_image, 2))
        until("the group alone", lambda: sorted(uids(service)) == ["moved-nodes-0", "moved-nodes-0-1"], 240)
        service.wait_ready()
        before = load.answered
        until("the group answers", lambda: load.answered >= before + 4)
        service.apply(spec(engine_image, 1))
        until("the pod alone", lambda: len(uids(service)) == 1 and "moved-nodes-0" not in uids(service), 240)
        service.wait_ready()
        before = load.answered
        until("the pod answers", lambda: load.answered >= before + 4)
    assert load.failures == []


def test_a_rollout_whose_groups_crash_is_stopped_until_the_next_spec(
    kubectl: Kubectl, namespace: str, operator: str, engine_image: str
) -> None:
    service = LLMService(kubectl, namespace, "kept")
    good = spec(engine_image, 2, replicas=2)
    service.apply(good)
    service.wait_ready(240)
    before = uids(service)
    broken = {"type": "custom", "image": engine_image, "command": ["sh", "-c", "sleep 1; exit 4"]}
    bad = {**good, "engine": broken, "rollout": {**good.get("rollout", {}), "progressDeadlineSeconds": 40}}
    service.apply(bad)
    until("the rollout stopped", lambda: service.condition("Ready").get("reason") == "RolloutStopped", 180)
    until("the failing group gone", lambda: uids(service) == before, 120)
    assert service.condition("Available")["status"] == "True"
    assert service.get()["status"]["ready"] == "2/2"
    assert greeted(service)

    # more of what serves, and nothing of what failed
    service.apply({**bad, "replicas": 3})
    until("a third group serves", lambda: service.get()["status"]["ready"] == "3/3", 240)
    assert set(before.items()) < set(uids(service).items())
    assert service.condition("Ready")["reason"] == "RolloutStopped"

    # LeaderWorkerSet may take minutes for a group of the number that had failed so often: that it begins will do
    service.apply({**good, "podTemplate": {**good["podTemplate"], "metadata": {"labels": {"try": "2"}}}})
    until("a group of the next spec", lambda: any("try" in pod["metadata"]["labels"] for pod in service.pods()), 120)
    assert service.condition("Ready")["reason"] != "RolloutStopped"
    assert service.condition("Available")["status"] == "True"
