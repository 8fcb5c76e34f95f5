"""What the API server refuses, each with a message that says what to write instead; our own parsing says the same."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from quire_operator.api import InvalidLLMServiceError, parse_llmservice
from quire_operator.api.llmservice import LONGEST_GROUP_NAME, LONGEST_NAME
from quire_operator.kubeapi.resources import LLMSERVICES
from tests.operator.api_client import Namespace
from tests.operator.services import manifest

REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("replicas and autoscaling", {"replicas": 1, "autoscaling": {"maxReplicas": 2}}, "spec.replicas", "keep one"),
    (
        "min above max",
        {"autoscaling": {"minReplicas": 3, "maxReplicas": 2}},
        "spec.autoscaling.minReplicas",
        "lower one or raise the other",
    ),
    (
        "scale to zero on HPA",
        {"autoscaling": {"backend": "hpa", "minReplicas": 0, "maxReplicas": 2}},
        "spec.autoscaling.minReplicas",
        "write 1 or more, or backend: keda",
    ),
    (
        "idle above zero",
        {"autoscaling": {"minReplicas": 2, "idleReplicas": 1, "maxReplicas": 2}},
        "spec.autoscaling.idleReplicas",
        "Write 0, or leave it out",
    ),
    (
        "idle at what is zero already",
        {"autoscaling": {"minReplicas": 0, "idleReplicas": 0, "maxReplicas": 2}},
        "spec.autoscaling.idleReplicas",
        "with minReplicas of 1 or more",
    ),
    (
        "scale to zero by its own queue alone",
        {"autoscaling": {"minReplicas": 0, "maxReplicas": 2, "queueDepth": {"target": 5}}},
        "spec.autoscaling.triggers",
        "nothing would wake the service",
    ),
    (
        "idle at zero with nothing to wake it",
        {"autoscaling": {"minReplicas": 1, "idleReplicas": 0, "maxReplicas": 2}},
        "spec.autoscaling.triggers",
        "Add to triggers",
    ),
    (
        "latency on HPA",
        {
            "autoscaling": {
                "backend": "hpa",
                "maxReplicas": 2,
                "latency": {"metric": "timeToFirstToken", "target": "1s"},
            }
        },
        "spec.autoscaling.backend",
        "or write keda",
    ),
    (
        "triggers on HPA",
        {"autoscaling": {"backend": "hpa", "maxReplicas": 2, "triggers": [{"type": "cron"}]}},
        "spec.autoscaling.backend",
        "or write keda",
    ),
    ("source of no scheme", {"model": {"source": "meta/llama"}}, "spec.model.source", "hf://ORG/NAME"),
    ("hub source without org", {"model": {"source": "hf://gpt2"}}, "spec.model.source", "must be hf://ORG/NAME"),
    ("relative image source", {"model": {"source": "image://models"}}, "spec.model.source", "must be image:///PATH"),
    (
        "claim source in capitals",
        {"model": {"source": "pvc://Models/x"}},
        "spec.model.source",
        "must be pvc://CLAIM/PATH",
    ),
    ("revision of an image source", {"model": {"revision": "main"}}, "spec.model.revision", "leave it out"),
    (
        "more ranks than GPUs",
        {"parallelism": {"tensor": 2}, "resources": {"gpu": {"count": 1}}},
        "spec.parallelism",
        "must equal spec.resources.gpu.count x spec.parallelism.nodes",
    ),
    (
        "groups kept apart where there are none",
        {"parallelism": {"exclusiveTopology": "example.com/rack"}},
        "spec.parallelism.exclusiveTopology",
        "raise nodes, or leave it out",
    ),
    (
        "cache of a claim source",
        {"model": {"source": "pvc://models/x"}, "cache": {"claimName": "models"}},
        "spec.cache",
        "leave spec.cache out",
    ),
    (
        "cache of two claims",
        {"cache": {"claimName": "a", "volume": {"size": "1Gi"}}},
        "spec.cache.volume",
        "keep claimName",
    ),
    ("empty cache", {"cache": {}}, "spec.cache", "write claimName, volume or local"),
    ("no duration", {"monitoring": {"interval": "15"}}, "spec.monitoring.interval", "such as 60ms, 15s or 5m"),
    ("duration of zero", {"monitoring": {"interval": "0s"}}, "spec.monitoring.interval", "above zero"),
    ("scraped too rarely", {"monitoring": {"interval": "2m"}}, "spec.monitoring.interval", "write at most 1m"),
    (
        "an objective that nothing measures",
        {"monitoring": {"slo": {"timeToFirstToken": "5m"}}},
        "spec.monitoring.slo.timeToFirstToken",
        "write at most 160s",
    ),
    (
        "an objective of all requests",
        {"monitoring": {"slo": {"objective": 1.0}}},
        "spec.monitoring.slo.objective",
        "such as 0.95",
    ),
    ("no quantity", {"resources": {"cpu": "many"}}, "spec.resources.cpu", "such as 500m, 8 or 32Gi"),
    ("quantity of zero", {"resources": {"memory": 0}}, "spec.resources.memory", "above zero"),
    (
        "shared memory above memory",
        {"resources": {"memory": "1Gi", "sharedMemory": "1024Mi"}},
        "spec.resources.sharedMemory",
        "write less than memory",
    ),
    (
        "limit below request",
        {"resources": {"cpu": 2, "cpuLimit": "1500m"}},
        "spec.resources.cpuLimit",
        "raise the limit",
    ),
    (
        "product of another vendor",
        {"resources": {"gpu": {"resourceName": "amd.com/gpu", "product": "MI300X"}}},
        "spec.resources.gpu.product",
        "spec.scheduling.nodeSelector",
    ),
    ("utilization of zero", {"engine": {"gpuMemoryUtilization": 0}}, "spec.engine.gpuMemoryUtilization", "such as 0.9"),
    (
        "utilization above one",
        {"engine": {"gpuMemoryUtilization": 1.5}},
        "spec.engine.gpuMemoryUtilization",
        "such as 0.9",
    ),
    ("block size off the list", {"engine": {"blockSize": 12}}, "spec.engine.blockSize", "64"),
    (
        "floating tag",
        {"engine": {"image": "quire/engine:latest"}},
        "spec.engine.image",
        "write a tag other than latest",
    ),
    ("no tag", {"engine": {"image": "registry:5000/engine"}}, "spec.engine.image", "write a tag other than latest"),
    (
        "draft model of ngram",
        {"engine": {"speculative": {"method": "ngram", "model": "hf://a/b"}}},
        "spec.engine.speculative.model",
        "leave it out for ngram",
    ),
    ("rollout that cannot move", {"rollout": {"maxSurge": 0}}, "spec.rollout.maxSurge", "strategy: Recreate"),
    ("no number of pods", {"rollout": {"maxSurge": "some"}}, "spec.rollout.maxSurge", "25%"),
    ("negative replicas", {"replicas": -1}, "spec.replicas", "greater than or equal to 0"),
    (
        "another engine without an image",
        {"engine": {"type": "vllm"}},
        "spec.engine.image",
        "name the engine's image with its tag",
    ),
    (
        "custom engine without a start",
        {"engine": {"type": "custom", "image": "a:1", "command": []}},
        "spec.engine.command",
        "write how the engine is started",
    ),
    ("command of a known engine", {"engine": {"command": ["serve"]}}, "spec.engine.command", "leave it out"),
    ("port of a known engine", {"engine": {"port": 9000}}, "spec.engine.port", "leave it out"),
    (
        "health path of a known engine",
        {"engine": {"type": "vllm", "image": "a:1", "healthPath": "/ready"}},
        "spec.engine.healthPath",
        "leave it out",
    ),
    (
        "metrics of a known engine",
        {"engine": {"type": "tgi", "image": "a:1", "metrics": {"waiting": "waiting"}}},
        "spec.engine.metrics",
        "leave it out",
    ),
    (
        "query for a metric",
        {"engine": {"type": "custom", "image": "a:1", "command": ["a"], "metrics": {"waiting": "sum(x)"}}},
        "spec.engine.metrics.waiting",
        "such as vllm:num_requests_waiting",
    ),
    (
        "health path without a slash",
        {"engine": {"type": "custom", "image": "a:1", "command": ["a"], "healthPath": "ready"}},
        "spec.engine.healthPath",
        "begins with /",
    ),
    ("no such engine", {"engine": {"type": "ollama"}}, "spec.engine.type", "trtllm"),
    (
        "secret of no name",
        {"model": {"tokenSecretRef": {"name": "A B", "key": "k"}}},
        "spec.model.tokenSecretRef",
        "letters",
    ),
    ("environment without a name", {"engine": {"env": [{"value": "x"}]}}, "spec.engine.env[0].name", "Required value"),
    ("environment of a number", {"engine": {"env": [{"name": "X", "value": 1}]}}, "spec.engine.env[0].value", "string"),
]


@pytest.mark.control_plane
@pytest.mark.parametrize(("change", "field", "advice"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_the_api_server_refuses_it_naming_the_field_and_what_to_write(
    namespace: Namespace, change: dict[str, Any], field: str, advice: str
) -> None:
    with pytest.raises(httpx.HTTPStatusError) as refused:
        namespace.create(manifest(**change))
    body = refused.value.response.json()
    assert body["reason"] == "Invalid"
    causes = {cause["field"]: cause["message"] for cause in body["details"]["causes"]}
    told = [message for where, message in causes.items() if where.startswith(field)]
    assert any(advice in message for message in told), causes


@pytest.mark.parametrize("change", [row[1] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_our_own_parsing_refuses_it_too(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidLLMServiceError):
        parse_llmservice(manifest(**change), strict=True)


@pytest.mark.control_plane
@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("a.b", "metadata.name names a Service"),
        ("9lives", "metadata.name names a Service"),
        ("a" * (LONGEST_NAME + 1), "shorten it"),
    ],
)
def test_a_name_that_a_child_could_not_bear_is_refused(namespace: Namespace, name: str, advice: str) -> None:
    with pytest.raises(httpx.HTTPStatusError) as refused:
        namespace.create(manifest(name))
    assert advice in refused.value.response.text
    with pytest.raises(InvalidLLMServiceError, match=advice):
        parse_llmservice(manifest(name))


@pytest.mark.control_plane
def test_a_name_that_labels_of_a_groups_pods_could_not_hold_is_refused(namespace: Namespace) -> None:
    group = {"parallelism": {"tensor": 2, "nodes": 2}, "resources": {"gpu": {"count": 1}}}
    too_long = "a" * (LONGEST_GROUP_NAME + 1)
    with pytest.raises(httpx.HTTPStatusError) as refused:
        namespace.create(manifest(too_long, **group))
    assert "with spec.parallelism.nodes above 1, metadata.name may have 40 characters" in refused.value.response.text
    with pytest.raises(InvalidLLMServiceError, match="shorten it"):
        parse_llmservice(manifest(too_long, **group))
    assert namespace.create(manifest("a" * LONGEST_GROUP_NAME, **group))
    assert namespace.create(manifest(too_long))


@pytest.mark.control_plane
@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"storageClassName": "other"}, "make another claim"),
        ({"accessModes": ["ReadWriteOnce"]}, "make another claim"),
    ],
)
def test_a_volume_cannot_become_what_its_claim_cannot(
    namespace: Namespace, change: dict[str, Any], advice: str
) -> None:
    namespace.create(manifest(cache={"volume": {"size": "2Gi"}}))
    with pytest.raises(httpx.HTTPStatusError) as refused:
        namespace.change("llama", {"cache": {"volume": change}})
    assert advice in refused.value.response.text


@pytest.mark.control_plane
def test_every_default_is_filled_in_and_means_the_same_to_us(namespace: Namespace) -> None:
    created = namespace.create(manifest())
    assert created["spec"]["rollout"]["drainSeconds"] == 180
    assert created["spec"]["engine"]["gpuMemoryUtilization"] == 0.9
    assert parse_llmservice(created).spec == parse_llmservice(manifest()).spec


@pytest.mark.control_plane
def test_opaque_parts_survive_storage_whole(namespace: Namespace) -> None:
    opaque = {
        "podTemplate": {"spec": {"containers": [{"name": "x", "anything": {"deep": [1, {"a": None}]}}]}},
        "scheduling": {"affinity": {"podAntiAffinity": {"x": 1}}, "tolerations": [{"operator": "Exists"}]},
        "engine": {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]},
    }
    namespace.create({**manifest(), "spec": {**manifest()["spec"], **opaque}})
    stored = namespace.get(LLMSERVICES, "llama")["spec"]
    assert stored["podTemplate"] == opaque["podTemplate"]
    assert stored["scheduling"]["affinity"] == opaque["scheduling"]["affinity"]
    assert stored["engine"]["env"] == opaque["engine"]["env"]
