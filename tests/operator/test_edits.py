"""An edit of any field reaches what runs: each is made of a service that is there, on a real API server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from quire_operator.api import custom_resource_definition
from quire_operator.kubeapi.resources import DEPLOYMENTS, LLMSERVICES
from tests.operator.api_client import Namespace, eventually
from tests.operator.operator_process import OperatorProcess
from tests.operator.services import manifest

ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "model.source": ({"model": {"source": "image:///models/other"}}, "--model=/models/other"),
    "model.name": ({"model": {"name": "served"}}, "served"),
    "model.aliases": ({"model": {"aliases": ["other-name"]}}, "other-name"),
    "model.dtype": ({"model": {"dtype": "float32"}}, "--dtype=float32"),
    "model.quantization": ({"model": {"quantization": "int8"}}, "--quantization=int8"),
    "model.maxModelLen": ({"model": {"maxModelLen": 1234}}, "--max-model-len=1234"),
    "model.trustRemoteCode": ({"model": {"trustRemoteCode": True}}, "--trust-remote-code"),
    "model.adapters": (
        {"model": {"adapters": [{"name": "sql", "source": "image:///sql"}]}},
        json.dumps({"name": "sql", "path": "/sql"}),
    ),
    "engine.gpuMemoryUtilization": ({"engine": {"gpuMemoryUtilization": 0.8}}, "--gpu-memory-utilization=0.8"),
    "engine.maxNumSeqs": ({"engine": {"maxNumSeqs": 7}}, "--max-num-seqs=7"),
    "engine.maxNumBatchedTokens": ({"engine": {"maxNumBatchedTokens": 512}}, "--max-num-batched-tokens=512"),
    "engine.blockSize": ({"engine": {"blockSize": 32}}, "--block-size=32"),
    "engine.swapSpaceGiB": ({"engine": {"swapSpaceGiB": 8}}, "--swap-space=8"),
    "engine.prefixCaching": ({"engine": {"prefixCaching": False}}, "--no-enable-prefix-caching"),
    "engine.chunkedPrefill": ({"engine": {"chunkedPrefill": False}}, "--no-enable-chunked-prefill"),
    "engine.enforceEager": ({"engine": {"enforceEager": True}}, "--enforce-eager"),
    "engine.args": ({"engine": {"args": ["--seed=3"]}}, "--seed=3"),
    "parallelism.tensor": ({"parallelism": {"tensor": 2}}, "--tensor-parallel-size=2"),
    "parallelism.pipeline": ({"parallelism": {"pipeline": 2}}, "--pipeline-parallel-size=2"),
    "rollout.drainSeconds": ({"rollout": {"drainSeconds": 20}}, "--shutdown-timeout=20"),
    "resources.gpu": ({"resources": {"gpu": {"count": 4}}}, "--device=cuda"),
}
"""By field, an edit and the argument of the engine that comes of it."""

POD = ("template", "spec")
ENGINE = (*POD, "containers", "engine")
HUB = {"adapters": [{"name": "sql", "source": "hf://org/sql"}], "tokenSecretRef": {"name": "hub", "key": "token"}}
ZONES = {"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway"}
OTHER_PODS = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}}

PARTS: list[tuple[str, dict[str, Any], tuple[Any, ...], Any]] = [
    ("engine.image", {"engine": {"image": "other/engine:1"}}, (*ENGINE, "image"), "other/engine:1"),
    ("engine.env", {"engine": {"env": [{"name": "A", "value": "b"}]}}, (*ENGINE, "env", "A", "value"), "b"),
    ("model.tokenSecretRef", {"model": HUB}, (*ENGINE, "env", "HF_TOKEN", "valueFrom", "secretKeyRef", "name"), "hub"),
    (
        "security.apiKeySecretRef",
        {"security": {"apiKeySecretRef": {"name": "keys", "key": "llama"}}},
        (*ENGINE, "env", "QUIRE_API_KEY", "valueFrom", "secretKeyRef", "name"),
        "keys",
    ),
    ("resources.cpu", {"resources": {"cpu": "3"}}, (*ENGINE, "resources", "requests", "cpu"), "3"),
    ("resources.cpuLimit", {"resources": {"cpuLimit": "5"}}, (*ENGINE, "resources", "limits", "cpu"), "5"),
    ("resources.memory", {"resources": {"memory": "6Gi"}}, (*ENGINE, "resources", "limits", "memory"), "6Gi"),
    (
        "resources.sharedMemory",
        {"resources": {"sharedMemory": "1Gi"}},
        (*POD, "volumes", 0, "emptyDir", "sizeLimit"),
        "1Gi",
    ),
    ("scheduling.nodeSelector", {"scheduling": {"nodeSelector": {"a": "b"}}}, (*POD, "nodeSelector"), {"a": "b"}),
    (
        "scheduling.tolerations",
        {"scheduling": {"tolerations": [{"key": "a", "operator": "Exists"}]}},
        (*POD, "tolerations"),
        [{"key": "a", "operator": "Exists"}],
    ),
    (
        "scheduling.affinity",
        {
            "scheduling": {
                "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [OTHER_PODS]}}
            }
        },
        (*POD, "affinity", "podAntiAffinity", "requiredDuringSchedulingIgnoredDuringExecution"),
        [OTHER_PODS],
    ),
    (
        "scheduling.topologySpreadConstraints",
        {"scheduling": {"topologySpreadConstraints": [ZONES]}},
        (*POD, "topologySpreadConstraints", 0, "topologyKey"),
        "zone",
    ),
    (
        "scheduling.priorityClassName",
        {"scheduling": {"priorityClassName": "high"}},
        (*POD, "priorityClassName"),
        "high",
    ),
    ("scheduling.runtimeClassName", {"scheduling": {"runtimeClassName": "vm"}}, (*POD, "runtimeClassName"), "vm"),
    ("scheduling.schedulerName", {"scheduling": {"schedulerName": "mine"}}, (*POD, "schedulerName"), "mine"),
    ("probes.startupSeconds", {"probes": {"startupSeconds": 77}}, (*ENGINE, "startupProbe", "failureThreshold"), 77),
    ("rollout.drainSeconds", {"rollout": {"drainSeconds": 60}}, (*POD, "terminationGracePeriodSeconds"), 105),
    ("rollout.maxSurge", {"rollout": {"maxSurge": 3}}, ("strategy", "rollingUpdate", "maxSurge"), 3),
    ("rollout.maxUnavailable", {"rollout": {"maxUnavailable": 2}}, ("strategy", "rollingUpdate", "maxUnavailable"), 2),
    (
        "rollout.progressDeadlineSeconds",
        {"rollout": {"progressDeadlineSeconds": 900}},
        ("progressDeadlineSeconds",),
        900,
    ),
    ("rollout.strategy", {"rollout": {"strategy": "Recreate"}}, ("strategy", "type"), "Recreate"),
]
"""A field, an edit, and where in the Deployment's spec what comes of it is; elements of lists by number or name."""

ELSEWHERE = {
    "model.revision": "a model of the hub's: test_prefetch",
    "model.kvCacheDtype": "not there yet in Quire's own engine: test_engines",
    "engine.speculative": "not there yet in Quire's own engine: test_engines",
    "engine.type": "test_engines",
    "engine.command": "of type custom: test_engines",
    "engine.port": "of type custom: test_engines",
    "engine.healthPath": "of type custom: test_engines",
    "engine.metrics": "of type custom: test_engines",
    "parallelism.nodes": "a group of pods: test_groups",
    "parallelism.exclusiveTopology": "a group of pods: test_groups",
    "security.networkPolicy": "an object of its own: test_network_policy",
}
"""Fields that are not edited here, and which tests edit or refuse them."""


@pytest.mark.control_plane
def test_a_change_of_any_engine_field_reaches_the_engine_and_goes_again(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    original = namespace.create(manifest())

    def arguments() -> list[str]:
        (container,) = namespace.get(DEPLOYMENTS, "llama")["spec"]["template"]["spec"]["containers"]
        return list(container["args"])

    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    before = arguments()
    missing = []
    for field, (change, argument) in ARGUMENTS.items():
        assert argument not in before
        namespace.change("llama", change)
        try:
            eventually(lambda argument=argument: argument in arguments(), 10)
        except AssertionError:
            missing.append(field)
    assert missing == []
    live = namespace.get(LLMSERVICES, "llama")
    namespace.api.request("PUT", LLMSERVICES.path(namespace.name, "llama"), {**live, "spec": original["spec"]})
    eventually(lambda: arguments() == before)


@pytest.mark.control_plane
def test_a_change_of_any_pod_field_reaches_the_pod(namespace: Namespace, operator: OperatorProcess) -> None:
    namespace.create(manifest())
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    for _, change, path, expected in PARTS:
        namespace.change("llama", change)
        eventually(
            lambda path=path, expected=expected: at(namespace.get(DEPLOYMENTS, "llama")["spec"], path) == expected, 10
        )


def at(node: Any, path: tuple[Any, ...]) -> Any:
    """What is at a path. Raises KeyError where it does not lead anywhere."""
    for part in path:
        named = isinstance(node, list) and isinstance(part, str)
        node = ({item["name"]: item for item in node} if named else node)[part]
    return node


def test_there_is_an_edit_of_every_field_that_pods_are_made_of() -> None:
    (version,) = custom_resource_definition()["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    groups = ("model", "engine", "parallelism", "resources", "rollout", "probes", "scheduling", "security")
    fields = {f"{group}.{name}" for group in groups for name in spec[group]["properties"]}
    edited = {*ARGUMENTS, *(field for field, *_ in PARTS)}
    assert fields == edited | ELSEWHERE.keys()
    assert not edited & ELSEWHERE.keys()
