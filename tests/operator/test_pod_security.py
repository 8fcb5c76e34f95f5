"""Pods pass the strictest level of Pod Security, asked of a real API server that enforces it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from quire_operator.api import ClaimSource, parse_llmservice
from quire_operator.builders.cached_model import download_of
from quire_operator.builders.circumstances import EVERYTHING, Circumstances
from quire_operator.builders.desired import desired_objects
from quire_operator.builders.inspection import build_inspection_job
from quire_operator.builders.prefetch_job import build_prefetch_job
from quire_operator.kubeapi.resources import PODS
from quire_operator.plan.acceptance import refusal_of
from tests.operator.api_client import ApiClient
from tests.operator.conftest import REPOSITORY, program
from tests.operator.services import SETTINGS, manifest, service

pytestmark = pytest.mark.control_plane

SAMPLES = {path.stem: yaml.safe_load(path.read_text()) for path in (REPOSITORY / "manifests/samples").glob("*.yaml")}
HUB = {"source": "hf://org/name", "tokenSecretRef": {"name": "hf", "key": "token"}}
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gpu": {"resources": {"gpu": {"count": 1, "product": "H100"}}},
    "hub": {"model": HUB},
    "claim": {"model": {"source": "pvc://weights/llama"}},
    "cache": {"model": HUB, "cache": {"volume": {"size": "1Gi"}}},
    "local": {"model": HUB, "cache": {"local": {"ephemeralVolume": {"size": "1Gi"}}}},
    "key": {"security": {"apiKeySecretRef": {"name": "key", "key": "key"}}},
    "network-policy": {"security": {"networkPolicy": {"allowedNamespaces": []}}},
    "recreate": {"rollout": {"strategy": "Recreate"}},
    "sidecar": {
        "podTemplate": {
            "spec": {
                "containers": [
                    {
                        "name": "proxy",
                        "image": "proxy:1",
                        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    }
                ]
            }
        }
    },
}


@pytest.fixture(scope="module")
def restricted(api: ApiClient) -> str:
    """A namespace that admits only what the level `restricted` of its newest version allows."""
    name = "restricted"
    labels = {
        "pod-security.kubernetes.io/enforce": "restricted",
        "pod-security.kubernetes.io/enforce-version": "latest",
    }
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    api.apply(f"/api/v1/namespaces/{name}", body)
    return name


def templates(child: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pod templates in an object, wherever its kind has them."""
    for key, value in child.items():
        if key.lower().endswith("template") and isinstance(value.get("spec"), dict) and "containers" in value["spec"]:
            yield value
        elif isinstance(value, dict):
            yield from templates(value)


def admit(api: ApiClient, namespace: str, template: dict[str, Any]) -> None:
    """Have the API server look at a pod of this template. Raises httpx.HTTPStatusError where it is forbidden."""
    metadata = {**template.get("metadata", {}), "name": "pod", "namespace": namespace}
    spec = {
        key: value for key, value in template["spec"].items() if key != "priorityClassName"
    }  # which is the cluster's
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    api.request("POST", f"{PODS.path(namespace)}?dryRun=All&fieldValidation=Strict", body)


def pods_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    service = parse_llmservice(body, strict=True)
    assert refusal_of(service.spec) is None
    children = desired_objects(service, Circumstances(SETTINGS, EVERYTHING))
    return [template for child in children for template in templates(child)]


@pytest.mark.parametrize("spec", FEATURES.values(), ids=FEATURES.keys())
def test_every_pod_of_a_feature_is_admitted(api: ApiClient, restricted: str, spec: dict[str, Any]) -> None:
    pods = pods_of(manifest(**spec))
    assert pods
    for pod in pods:
        admit(api, restricted, pod)


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())
def test_every_pod_of_a_sample_is_admitted(api: ApiClient, restricted: str, sample: dict[str, Any]) -> None:
    for pod in pods_of(sample):
        admit(api, restricted, pod)


def test_the_pod_that_reads_a_claim_is_admitted(api: ApiClient, restricted: str) -> None:
    source = ClaimSource("models", "llama")
    (pod,) = templates(build_inspection_job(service(model={"source": "pvc://models/llama"}), source, SETTINGS))
    admit(api, restricted, pod)


def test_the_pod_that_downloads_onto_a_claim_is_admitted(api: ApiClient, restricted: str) -> None:
    built = service(model=HUB, cache={"claimName": "models"})
    download = download_of(built, None)
    assert download is not None
    (pod,) = templates(build_prefetch_job(built, download, Circumstances(SETTINGS)))
    admit(api, restricted, pod)


@pytest.mark.parametrize("setting", ["replicas=1", "replicas=2"])
def test_every_pod_of_the_chart_is_admitted(api: ApiClient, restricted: str, setting: str) -> None:
    command = [program("helm") / "helm", "template", "quire", REPOSITORY / "charts/quire-operator", "--set", setting]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    documents = [document for document in yaml.safe_load_all(rendered) if document]
    pods = [template for document in documents for template in templates(document)]
    pods += [document for document in documents if document["kind"] == "Pod"]
    assert pods
    for pod in pods:
        admit(api, restricted, pod)


@pytest.mark.parametrize(
    "spec",
    [
        {"hostNetwork": True},
        {"containers": [{"name": "engine", "securityContext": {"allowPrivilegeEscalation": True}}]},
        {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]},
    ],
    ids=lambda spec: next(iter(spec)),
)
def test_a_pod_template_of_less_is_forbidden(api: ApiClient, restricted: str, spec: dict[str, Any]) -> None:
    (pod,) = pods_of(manifest(podTemplate={"spec": spec}))
    with pytest.raises(httpx.HTTPStatusError) as refusal:
        admit(api, restricted, pod)
    assert 'violates PodSecurity "restricted' in refusal.value.response.json()["message"]
