"""From an LLMService to a chat answer, and what users see on the way."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from e2e.cluster.kubectl import Kubectl
from e2e.llmservice import CHILD_KINDS, LABEL, LLMService, until

SAMPLE = Path("manifests/samples/tiny-cpu.yaml")


def test_the_sample_becomes_ready_answers_and_leaves_nothing(kubectl: Kubectl, namespace: str, operator: str) -> None:
    sample = yaml.safe_load(SAMPLE.read_text())
    service = LLMService(kubectl, namespace, sample["metadata"]["name"])
    kubectl("apply", "-n", namespace, "-f", str(SAMPLE))
    service.wait_ready(60)

    chunks = list(
        service.client().chat.completions.create(
            model=sample["spec"]["model"].get("name", service.name),
            messages=[{"role": "user", "content": "Hello!"}],
            temperature=0,
            max_tokens=60,
            stream=True,
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text.startswith("Hello! I am a tiny model")
    assert len(chunks) > 5

    header, row = kubectl("get", "llms", "-n", namespace).splitlines()
    assert header.split() == ["NAME", "READY", "MODEL", "REPLICAS", "GPUS", "REASON", "AGE"]
    assert row.split()[:5] == [service.name, "True", "image:///models/tiny", "1/1", "0"]
    found = service.get()
    assert found["status"]["url"] == f"http://{service.name}.{namespace}.svc.cluster.local:8000/v1"
    states = {c["type"]: c["status"] for c in found["status"]["conditions"]}
    states.pop("Monitored", None)  # where an earlier scenario has brought the Prometheus operator's kinds
    assert states == {"Accepted": "True", "Available": "True", "Ready": "True"}

    service.delete()

    def nothing_left() -> bool:
        left = json.loads(kubectl("get", CHILD_KINDS, "-n", namespace, "-l", f"{LABEL}={service.name}", "-o", "json"))
        return not left["items"]

    until("all children gone", nothing_left, 90)
    assert kubectl("get", "llms", "-n", namespace, "-o", "name") == ""


def test_a_deployment_written_for_vllm_runs_with_only_its_image_changed(
    kubectl: Kubectl, namespace: str, engine_image: str
) -> None:
    manifest = (Path(__file__).parent / "manifests" / "vllm-deployment.yaml").read_text()
    kubectl("apply", "-n", namespace, "-f", "-", input=manifest.replace("vllm/vllm-openai:v0.10.0", engine_image))
    kubectl("rollout", "status", "deployment/vllm", "-n", namespace, "--timeout=120s", timeout=150)
    service = LLMService(kubectl, namespace, "vllm")
    answer = service.client().completions.create(model="/models/tiny", prompt="Return", max_tokens=8)
    assert answer.choices[0].text
    logs = kubectl("logs", "-n", namespace, "deployment/vllm")
    assert "# GPU blocks:" in logs
