"""KServe's manager, an operator in Go, doing what comes nearest to ours: `operator_scale` measures both in turns.

KServe 0.15 gets InferenceServices in RawDeployment mode, each with a custom container: no Knative, no Istio, no
ingress, so each becomes a Deployment, a Service and a HorizontalPodAutoscaler, where an LLMService becomes five
objects. Its client is limited to 20 requests a second, which is its default and what its users get. Build it with
`python3 -m e2e.cluster build kserve kserve-config`.
"""

from __future__ import annotations

import concurrent.futures
import json
from pathlib import Path
from typing import Any

import yaml

from benchmarks.operator_bench import NAMESPACE, until_shown, wait_for
from e2e.cluster import binaries, locations
from e2e.cluster.certificates import alternative_names
from e2e.cluster.control_plane import ControlPlane
from quire_operator.kubeapi.resources import AUTOSCALERS, DEPLOYMENTS, SERVICES, Resource
from tests.operator.api_client import ApiClient

INFERENCE_SERVICES = Resource("serving.kserve.io/v1beta1", "InferenceService", "inferenceservices")
_RAW = {"serving.kserve.io/deploymentMode": "RawDeployment"}
_DAEMON = "kserve"


class KServe:
    """KServe's manager beside a control plane, as the admin."""

    name = "KServe 0.15.2, RawDeployment, custom container, client at its default of 20 requests a second"

    def __init__(self, plane: ControlPlane, api: ApiClient) -> None:
        self._plane, self._api = plane, api
        binaries.ensure("kserve", "kserve-config")
        self._install()

    def _install(self) -> None:
        """Its CRDs, and its configuration with everything off that needs another project."""
        config = locations.cache() / "kserve-config"
        for file in sorted((config / "crd/full").glob("serving.kserve.io_*.yaml")):
            crd = yaml.safe_load(file.read_text())
            name = crd["metadata"]["name"]
            self._api.apply(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}", crd)
        self._api.make_namespace("kserve")
        settings = yaml.safe_load((config / "configmap/inferenceservice.yaml").read_text())
        ingress = json.loads(settings["data"]["ingress"])
        ingress |= {"disableIstioVirtualHost": True, "disableIngressCreation": True}
        settings["data"]["ingress"] = json.dumps(ingress)
        settings["data"]["deploy"] = json.dumps({"defaultDeploymentMode": "RawDeployment"})
        self._api.apply("/api/v1/namespaces/kserve/configmaps/inferenceservice-config", settings)
        wait_for("its API", lambda: self._api.find(INFERENCE_SERVICES, NAMESPACE, "none") is None, 60)

    def create(self, names: list[str]) -> None:
        """Create InferenceServices, eight at a time."""
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: self._api.create(INFERENCE_SERVICES, inference_service(name)), names))

    def start(self) -> int:
        """Start the manager. Returns its pid."""
        pair = self._plane.authority.issue("webhook", "webhook", [alternative_names(["localhost"], ["127.0.0.1"])])
        certificates = self._plane.directory / "k8s-webhook-server/serving-certs"
        certificates.mkdir(parents=True)
        (certificates / "tls.crt").write_bytes(pair.certificate.read_bytes())
        (certificates / "tls.key").write_bytes(pair.key.read_bytes())
        environment = {
            "KUBECONFIG": str(self._plane.kubeconfig),
            "POD_NAMESPACE": "kserve",
            "TMPDIR": str(self._plane.directory),
        }
        command: list[str | Path] = [
            binaries.ensure("kserve") / "kserve-manager",
            "--metrics-addr=0",
            "--health-probe-addr=0",
            "--webhook-port=19443",
        ]
        self._plane.daemons.start(_DAEMON, command, environment=environment)
        pid = self._plane.daemons.pid(_DAEMON)
        assert pid is not None
        return pid

    def served(self) -> int:
        """InferenceServices that have a Deployment and a status."""
        deployments = {item["metadata"]["name"] for item in self._api.list(DEPLOYMENTS, NAMESPACE)}
        services = self._api.list(INFERENCE_SERVICES, NAMESPACE)
        return sum(f"{i['metadata']['name']}-predictor" in deployments and bool(i.get("status")) for i in services)

    def edit(self, name: str, number: int, limit: float) -> float:
        """Seconds, at most `limit`, from an edit of the spec until a watch of the Deployment shows it."""
        wanted = f"--max-num-seqs={number % 200 + 10}"
        spec = {"spec": inference_service(name, wanted)["spec"]}
        return until_shown(
            self._api,
            f"{name}-predictor",
            wanted,
            lambda: self._api.patch(INFERENCE_SERVICES, NAMESPACE, name, spec),
            limit,
        )

    def clear(self) -> None:
        """End the manager, and delete all that it made; it would take its finalizers off at 20 requests a second."""
        self._plane.daemons.stop(_DAEMON)
        names = [item["metadata"]["name"] for item in self._api.list(INFERENCE_SERVICES, NAMESPACE)]
        nothing = {"metadata": {"finalizers": None}}
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: self._api.patch(INFERENCE_SERVICES, NAMESPACE, name, nothing), names))
        for resource in (INFERENCE_SERVICES, DEPLOYMENTS, SERVICES, AUTOSCALERS):
            self._api.request("DELETE", resource.path(NAMESPACE))


def inference_service(name: str, *arguments: str) -> dict[str, Any]:
    """One with a container of its own, as an LLMService of engine.type custom would have."""
    quantities = {"cpu": "2", "memory": "4Gi"}
    container = {
        "name": "kserve-container",
        "image": "quire/engine:test",
        "args": ["--model=/models/tiny", *arguments],
        "resources": {"requests": quantities, "limits": quantities},
    }
    return {
        "apiVersion": INFERENCE_SERVICES.api_version,
        "kind": INFERENCE_SERVICES.kind,
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": _RAW},
        "spec": {"predictor": {"minReplicas": 1, "containers": [container]}},
    }
