"""Other engines' types, played by our own image: it takes vLLM's flags, and any command is a custom engine."""

from __future__ import annotations

from typing import Any

import httpx

from e2e.cluster.kubectl import Kubectl
from e2e.llmservice import LLMService, tiny_spec, until
from e2e.load import LongStream


def answer(service: LLMService, model: str) -> str:
    """What the model says through the Service."""
    completion = service.client().completions.create(model=model, prompt="Return", max_tokens=8)
    return completion.choices[0].text


def test_a_service_of_type_vllm_serves_and_its_pods_leave_without_cutting_a_stream(
    kubectl: Kubectl, namespace: str, operator: str, engine_image: str
) -> None:
    service = LLMService(kubectl, namespace, "vllm")
    service.apply(tiny_spec(engine={"type": "vllm", "image": engine_image, "maxNumSeqs": 16}))
    service.wait_ready()
    assert answer(service, "tiny")

    stream = LongStream(service, max_tokens=1900)  # far longer than the sleep before SIGTERM
    until("the stream began", lambda: stream.text or stream.failure)
    (leaving,) = (pod["metadata"]["name"] for pod in service.pods())
    kubectl("delete", "pod", leaving, "-n", namespace, "--wait=false")
    stream.join(300)
    assert (stream.failure, stream.finish_reason) == (None, "length")
    until("the deleted pod gone", lambda: leaving not in {p["metadata"]["name"] for p in service.pods()}, 120)
    events = kubectl("get", "events", "-n", namespace, "--field-selector", f"involvedObject.name={leaving}")
    assert "FailedPreStopHook" not in events
    service.wait_ready()
    assert answer(service, "tiny")


def test_a_custom_engine_finds_what_it_is_told_in_its_variables(
    kubectl: Kubectl, namespace: str, operator: str, engine_image: str
) -> None:
    engine: dict[str, Any] = {
        "type": "custom",
        "image": engine_image,
        "command": ["quire-engine", "serve", "--model=$(MODEL)"],
        "args": ["--served-model-name=$(SERVED_MODEL_NAME)", "--port=$(PORT)", "--max-num-seqs=16"],
        "port": 9000,
        "healthPath": "/ping",
        "metrics": {"waiting": "vllm:num_requests_waiting"},
    }
    service = LLMService(kubectl, namespace, "custom")
    service.apply(tiny_spec(engine=engine))
    service.wait_ready()
    assert answer(service, "tiny")
    (pod,) = service.pods()
    annotations = pod["metadata"]["annotations"]
    told = f"http://{pod['status']['podIP']}:{annotations['prometheus.io/port']}{annotations['prometheus.io/path']}"
    assert engine["metrics"]["waiting"] in httpx.get(told, timeout=30).text
