"""What is promised of security, on a real node: restricted pods, keys, and who reaches whom."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from e2e.cluster.kubectl import Kubectl
from e2e.llmservice import LLMService, tiny_spec, until

KEY, NEXT_KEY = "sk-PlantedKeyThatNobodyMayRepeat", "sk-PlantedKeyThatFollowsIt"
_CONNECT = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"


def test_restricted_pods_serve_whoever_has_the_key_and_repeat_it_nowhere(
    kubectl: Kubectl, namespace: str, operator: str
) -> None:
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    kubectl(
        "create",
        "secret",
        "generic",
        "key",
        "-n",
        namespace,
        f"--from-literal=key={KEY}",
        f"--from-literal=next={NEXT_KEY}",
    )
    service = LLMService(kubectl, namespace, "locked")
    second = {"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": {"name": "key", "key": "next"}}}
    first = {"apiKeySecretRef": {"name": "key", "key": "key"}}
    service.apply(tiny_spec(security=first, engine={"env": [second]}))
    service.wait_ready()

    body = {"model": "tiny", "prompt": "Return", "max_tokens": 4}
    url = f"{service.address()}/v1/completions"
    for headers in ({}, {"authorization": "Bearer wrong"}):
        assert httpx.post(url, json=body, headers=headers, timeout=30).status_code == 401
    for key in (KEY, NEXT_KEY):
        assert httpx.post(url, json=body, headers={"authorization": f"Bearer {key}"}, timeout=30).status_code == 200
    for path in ("/health", "/metrics"):
        assert httpx.get(service.address() + path, timeout=30).status_code == 200

    kinds = kubectl("api-resources", "--namespaced", "--verbs=list", "-o", "name").split()
    objects = kubectl("get", ",".join(kind for kind in kinds if kind != "secrets"), "-n", namespace, "-o", "json")
    written = {
        "objects": objects,
        "the engine's log": kubectl("logs", "-n", namespace, "deployment/locked"),
        "the operator's log": kubectl(
            "logs", "-n", operator, "-l", "app.kubernetes.io/name=quire-operator", "--tail=-1"
        ),
    }
    assert "locked" in written["the operator's log"]
    assert [where for where, text in written.items() if KEY in text or NEXT_KEY in text] == []


@pytest.fixture
def stranger(kubectl: Kubectl) -> Iterator[str]:
    """A namespace that no policy allows."""
    name = f"e2e-{uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def start_client(kubectl: Kubectl, namespace: str, image: str) -> None:
    """A pod that does nothing, and stands ready to be told what to connect to."""
    container = {"name": "client", "image": image, "command": ["sleep", "3600"]}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0, "enableServiceLinks": False}
    pod: dict[str, Any] = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client"}, "spec": spec}
    kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(pod))
    kubectl("wait", "pod/client", "-n", namespace, "--for=condition=Ready", "--timeout=60s", timeout=90)


def test_only_the_allowed_reach_a_limited_service_and_it_reaches_only_dns(
    network_policy: None, kubectl: Kubectl, namespace: str, stranger: str, operator: str, engine_image: str
) -> None:
    service = LLMService(kubectl, namespace, "limited")
    service.apply(tiny_spec(security={"networkPolicy": {"allowedNamespaces": []}}))
    for where in (namespace, stranger):
        start_client(kubectl, where, engine_image)
    service.wait_ready()
    (pod,) = service.pods()
    host, engine = f"limited.{namespace}.svc.cluster.local", pod["status"]["podIP"]

    def connects(where: str, source: str, host: str, port: int) -> bool:
        line = ("exec", source, "-n", where, "--", "python3", "-c", _CONNECT, host, str(port))
        return kubectl.attempt(*line).returncode == 0

    until("the policy to be enforced", lambda: not connects(stranger, "client", engine, 8000))
    assert not connects(stranger, "client", host, 8000)
    assert connects(namespace, "client", host, 8000)

    # DNS answers, since the name is resolved; what it stands for is out of reach, as is the API server
    resolve = ("exec", "deployment/limited", "-n", namespace, "--", "python3", "-c")
    kubectl(*resolve, "import socket; socket.getaddrinfo('kubernetes.default.svc.cluster.local', 443)")
    assert connects(namespace, "client", "kubernetes.default.svc.cluster.local", 443)
    assert not connects(namespace, "deployment/limited", "kubernetes.default.svc.cluster.local", 443)

    service.apply(tiny_spec(security={"networkPolicy": {"allowedNamespaces": [stranger]}}))
    until("the stranger to be let in", lambda: connects(stranger, "client", host, 8000))
    assert service.pods()[0]["metadata"]["name"] == pod["metadata"]["name"], "an edit of the policy restarts nothing"
    assert service.condition("Ready")["status"] == "True"
