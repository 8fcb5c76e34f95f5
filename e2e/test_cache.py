"""Weights from a hub: downloaded once by a Job, and served from the claim, or from a copy on the node, without it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster.kubectl import Kubectl
from e2e.hub import URL, Hub
from e2e.llmservice import LLMService, tiny_spec, until
from e2e.target import OwnNode, Target

PREFETCH = "serving.quire.dev/prefetch"


@pytest.fixture
def hub(kubectl: Kubectl, namespace: str, operator: str, engine_image: str) -> Hub:
    hub = Hub(kubectl, namespace)
    hub.start(engine_image)
    return hub


@pytest.fixture
def claim(kubectl: Kubectl, namespace: str) -> str:
    """A claim that pods of every node may have."""
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    return apply_claim(kubectl, namespace, spec)


@pytest.fixture
def node_directory(cluster: Target, namespace: str) -> Iterator[Path]:
    """A directory of the one node, which is this machine."""
    if not isinstance(cluster, OwnNode):
        pytest.skip("the node's directories are within reach on a node of our own alone")
    directory = Path("/tmp") / f"quire-{namespace}"
    directory.mkdir()
    yield directory
    subprocess.run(["umount", "-q", directory], check=False)
    subprocess.run(["rm", "-rf", directory], check=True)


def apply_claim(kubectl: Kubectl, namespace: str, spec: dict[str, Any], name: str = "models") -> str:
    body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}
    kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(body))
    return name


def hub_spec(model: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A service that the hub has, whatever is laid over it."""
    source = {"source": "hf://quire/tiny", "name": "tiny", **(model or {})}
    return tiny_spec(model=source, engine={"env": [{"name": "HF_ENDPOINT", "value": URL}]}, **spec)


def answers(service: LLMService) -> bool:
    answer = service.client().completions.create(model="tiny", prompt="Return", max_tokens=4)
    return bool(answer.choices[0].text)


def prefetch_pods(kubectl: Kubectl, namespace: str) -> list[dict[str, Any]]:
    found = json.loads(kubectl("get", "pods", "-n", namespace, "-l", PREFETCH, "-o", "json"))
    return list(found["items"])


def has_reason(service: LLMService, reason: str, kind: str = "ModelCached", seconds: float = 120) -> str:
    """The condition's message, once it has this reason."""

    def found() -> str | None:
        condition = service.condition(kind)
        return str(condition["message"]) if condition.get("reason") == reason else None

    try:
        return str(until(f"{kind} {reason}", found, seconds))
    except AssertionError as error:
        raise AssertionError(f"{error}\n{service.describe()}") from None


def test_two_services_share_one_download_and_serve_without_the_hub(
    kubectl: Kubectl, namespace: str, hub: Hub, claim: str
) -> None:
    services = [LLMService(kubectl, namespace, name) for name in ("one", "two")]
    for service in services:
        service.apply(hub_spec(cache={"claimName": claim}))
    for service in services:
        service.wait_ready()
        assert answers(service)
    assert len(prefetch_pods(kubectl, namespace)) == 1
    (whole,) = hub.sent()  # each byte of the weights once
    assert whole[0] == 0

    hub.stop()
    services[1].delete()
    services[0].apply(hub_spec(cache={"claimName": claim}, replicas=2))
    until("two pods ready", lambda: services[0].get()["status"].get("ready") == "2/2", 120)
    pod = services[0].pods()[0]["metadata"]["name"]
    written = kubectl.attempt("exec", "-n", namespace, pod, "--", "touch", "/models/cache/x")
    assert "Read-only file system" in written.stderr
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in services[0].pods()[0]["spec"]["containers"][0]["env"]


def test_a_download_that_is_killed_goes_on_and_is_served(
    kubectl: Kubectl, namespace: str, hub: Hub, claim: str
) -> None:
    hub.misbehave(bytes_per_second=300_000)
    service = LLMService(kubectl, namespace, "slow")
    service.apply(hub_spec(cache={"claimName": claim}))
    # the operator asks the pod itself how far it is
    until("bytes in the status", lambda: service.get()["status"].get("cache", {}).get("bytes"), 90)
    assert " of 0.01 GiB of quire/tiny at main are on claim models" in has_reason(service, "Downloading")
    (pod,) = prefetch_pods(kubectl, namespace)
    kubectl("delete", "pod", "-n", namespace, pod["metadata"]["name"], "--wait=false")
    until("the hub has noticed", hub.sent, 60)
    hub.misbehave(bytes_per_second=0)
    service.wait_ready(180)
    assert answers(service)
    before, after = hub.sent()
    assert 0 < after[0] <= before[1]


def test_a_branch_that_moved_is_served_when_its_job_is_deleted_and_old_revisions_go(
    kubectl: Kubectl, namespace: str, hub: Hub, claim: str
) -> None:
    service = LLMService(kubectl, namespace, "moving")
    service.apply(hub_spec(cache={"claimName": claim, "keepRevisions": 0}))
    service.wait_ready()
    first = service.get()["status"]["cache"]["commit"]
    hub.run("sh", "-c", "cp -r /models/tiny /tmp/tiny && echo >> /tmp/tiny/tokenizer_config.json")
    hub.move("/tmp/tiny")
    kubectl("delete", "job", "-n", namespace, "-l", PREFETCH)
    second = until(
        "another commit",
        lambda: (commit := service.get()["status"]["cache"].get("commit")) not in (None, first) and commit,
        120,
    )
    service.wait_ready()
    assert answers(service)
    assert len(hub.sent()) == 1  # the weights are the same, and were there

    # what is served while another revision is fetched stays, and goes with the next
    hub.run("sh", "-c", "echo >> /tmp/tiny/tokenizer_config.json")
    kubectl("delete", "job", "-n", namespace, "-l", PREFETCH)
    third = until(
        "a third commit",
        lambda: (commit := service.get()["status"]["cache"].get("commit")) not in (None, first, second) and commit,
        120,
    )
    service.wait_ready()
    pod = service.pods()[0]["metadata"]["name"]
    left = kubectl("exec", "-n", namespace, pod, "--", "ls", "/models/cache/hub/models--quire--tiny/snapshots").split()
    assert sorted(left) == sorted([second, third])


def test_what_the_hub_refuses_is_said_and_mended_by_an_edit(
    kubectl: Kubectl, namespace: str, hub: Hub, claim: str
) -> None:
    service = LLMService(kubectl, namespace, "refused")
    service.apply(hub_spec({"source": "hf://quire/none"}, cache={"claimName": claim}))
    has_reason(service, "ModelNotFound")
    service.apply(hub_spec({"revision": "no-such-branch"}, cache={"claimName": claim}))
    assert "no-such-branch" in has_reason(service, "RevisionNotFound")

    hub.misbehave(wants_token="the-token")
    service.apply(hub_spec(cache={"claimName": claim}))
    assert "set HF_TOKEN" in has_reason(service, "ModelGated")
    assert service.condition("Ready")["reason"] == "ModelGated"
    assert service.pods() == []
    kubectl("create", "secret", "generic", "hf", "-n", namespace, "--from-literal=token=the-token")
    token = {"tokenSecretRef": {"name": "hf", "key": "token"}}
    service.apply(hub_spec(token, cache={"claimName": claim}))
    service.wait_ready()
    assert answers(service)


def test_a_claim_without_room_is_said(kubectl: Kubectl, namespace: str, hub: Hub, node_directory: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0777", "tmpfs", node_directory], check=True)
    name = f"small-{namespace}"
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "4Mi"},
            "accessModes": ["ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "hostPath": {"path": str(node_directory)},
        },
    }
    kubectl("apply", "-f", "-", input=json.dumps(volume))
    try:
        spec = {"accessModes": ["ReadWriteMany"], "storageClassName": "", "volumeName": name}
        claim = apply_claim(kubectl, namespace, spec | {"resources": {"requests": {"storage": "4Mi"}}})
        service = LLMService(kubectl, namespace, "large")
        service.apply(hub_spec(cache={"claimName": claim}))
        assert "quire/tiny needs 0.01 GiB more" in has_reason(service, "CacheFull")
        assert hub.sent() == []
        service.delete()
        until("no pod is left", lambda: not prefetch_pods(kubectl, namespace), 60)
    finally:
        kubectl("delete", "pvc", "models", "-n", namespace, "--wait=false", "--ignore-not-found")
        kubectl("delete", "pv", name, "--wait=false")


def test_a_claim_that_is_not_there_is_waited_for(kubectl: Kubectl, namespace: str, hub: Hub) -> None:
    service = LLMService(kubectl, namespace, "early")
    service.apply(hub_spec(cache={"claimName": "models"}))
    assert "claim models does not exist" in has_reason(service, "ClaimNotFound")
    assert prefetch_pods(kubectl, namespace) == []
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    apply_claim(kubectl, namespace, spec)
    service.wait_ready(180)


def test_pods_of_a_node_load_the_copy_that_the_first_of_them_has_made(
    kubectl: Kubectl, namespace: str, hub: Hub, claim: str, node_directory: Path
) -> None:
    service = LLMService(kubectl, namespace, "local")
    spec = hub_spec(cache={"claimName": claim, "local": {"hostPath": str(node_directory)}})
    service.apply(spec)
    assert "cannot be written by user 10001" in has_reason(service, "CacheNotWritable", "Ready")
    node_directory.chmod(0o777)
    service.wait_ready(180)
    assert answers(service)
    commit = service.get()["status"]["cache"]["commit"]
    assert (node_directory / "hub/models--quire--tiny/snapshots" / commit / "model.safetensors").exists()

    hub.stop()
    service.apply(spec | {"replicas": 2})
    until("two pods ready", lambda: service.get()["status"].get("ready") == "2/2", 120)
    (mount,) = [m for m in service.pods()[0]["spec"]["containers"][0]["volumeMounts"] if m["name"] == "local"]
    assert mount["readOnly"] is True


def test_without_a_claim_each_pod_has_a_copy_of_its_own(kubectl: Kubectl, namespace: str, hub: Hub) -> None:
    service = LLMService(kubectl, namespace, "own")
    service.apply(hub_spec(cache={"local": {"ephemeralVolume": {"size": "1Gi"}}}))
    service.wait_ready(180)
    assert answers(service)
