"""Weights from a hub into a cache claim: downloaded once."""

from __future__ import annotations

import json
from pathlib import Path

from e2e.cluster.kubectl import Kubectl
from e2e.llmservice import LLMService, tiny_spec, until

HUB = Path(__file__).parent / "manifests" / "hub.yaml"
SCRIPT = Path(__file__).parent / "hub_server.py"


def start_hub(kubectl: Kubectl, namespace: str, engine_image: str) -> None:
    script = kubectl("create", "configmap", "hub", f"--from-file={SCRIPT}", "--dry-run=client", "-o", "yaml")
    kubectl("apply", "-n", namespace, "-f", "-", input=script)
    kubectl("apply", "-n", namespace, "-f", "-", input=HUB.read_text().replace("ENGINE_IMAGE", engine_image))
    kubectl("rollout", "status", "deployment/hub", "-n", namespace, "--timeout=120s", timeout=150)


def sent(kubectl: Kubectl, namespace: str) -> dict[str, int]:
    """How often the hub has sent each file's content."""
    asking = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8080/requests').read().decode())"
    counts: dict[str, int] = json.loads(
        kubectl("exec", "-n", namespace, "deployment/hub", "--", "python3", "-c", asking)
    )
    return counts


def hub_spec(**model: str) -> dict[str, object]:
    return tiny_spec(
        model={"source": "hf://quire/tiny", "name": "tiny", **model},
        cache={"volume": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}},
        engine={"env": [{"name": "HF_ENDPOINT", "value": "http://hub:8080"}]},
    )


def test_pods_use_what_was_downloaded_once_before_them(
    kubectl: Kubectl, namespace: str, operator: str, engine_image: str
) -> None:
    start_hub(kubectl, namespace, engine_image)
    service = LLMService(kubectl, namespace, "cached")
    service.apply(hub_spec())
    service.wait_ready()
    assert service.client().completions.create(model="tiny", prompt="Return", max_tokens=4).choices[0].text
    assert sent(kubectl, namespace)["model.safetensors"] == 1

    service.apply(hub_spec() | {"replicas": 2})
    until("two pods ready", lambda: service.get()["status"].get("ready") == "2/2", 120)
    assert sent(kubectl, namespace)["model.safetensors"] == 1


def test_a_revision_that_does_not_exist_is_named(
    kubectl: Kubectl, namespace: str, operator: str, engine_image: str
) -> None:
    start_hub(kubectl, namespace, engine_image)
    service = LLMService(kubectl, namespace, "lost")
    service.apply(hub_spec(revision="no-such-branch"))
    until("the condition", lambda: service.condition("Ready").get("reason") == "RevisionNotFound", 120)
    assert "no-such-branch" in service.condition("ModelCached")["message"]
