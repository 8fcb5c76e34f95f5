"""KServe's manager, an operator in Go, doing what comes nearest: the same measurements as `operator_scale`.

`python -m benchmarks.rival_operator [N]` gives KServe 0.15 N InferenceServices in RawDeployment mode, each with a
custom container, on an API server of its own: no Knative, no Istio, no ingress, so each becomes a Deployment, a Service
and a HorizontalPodAutoscaler, where an LLMService becomes six objects. Its client is limited to 20 requests a second,
which is its default and what its users get. Build it with `python3 -m e2e.cluster build kserve kserve-config`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.machine import describe_machine, percentile, resident_mib, write_result
from benchmarks.operator_bench import NAMESPACE, until_shown, wait_for
from e2e.cluster import binaries, locations
from e2e.cluster.certificates import alternative_names
from e2e.cluster.control_plane import ControlPlane, start_control_plane
from quire_operator.kubeapi.resources import DEPLOYMENTS, Resource
from tests.operator.api_client import ApiClient

INFERENCE_SERVICES = Resource("serving.kserve.io/v1beta1", "InferenceService", "inferenceservices")
_RAW = {"serving.kserve.io/deploymentMode": "RawDeployment"}


def main() -> None:
    """Measure, print a table and write results/rival_operator.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("services", type=int, nargs="?", default=1000)
    parser.add_argument("--edits", type=int, default=200)
    options = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="quire-bench-") as folder, rival(Path(folder)) as running:
        figures = measure(running, options.services, options.edits)
    for name, value in figures.items():
        print(f"{name:<40} {value}")
    print(f"written to {write_result('rival_operator', figures, machine)}")


class Rival:
    """KServe's manager beside a control plane of its own."""

    def __init__(self, plane: ControlPlane, directory: Path) -> None:
        self.plane, self._directory = plane, directory
        self.api = ApiClient(plane.server_url, plane.authority.pair.certificate, plane.users["admin"].token)

    def install(self) -> None:
        """Its CRDs, and its configuration with everything off that needs another project."""
        config = locations.cache() / "kserve-config"
        for file in sorted((config / "crd/full").glob("serving.kserve.io_*.yaml")):
            crd = yaml.safe_load(file.read_text())
            name = crd["metadata"]["name"]
            self.api.apply(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}", crd)
        for namespace in ("kserve", NAMESPACE):
            self.api.make_namespace(namespace)
        settings = yaml.safe_load((config / "configmap/inferenceservice.yaml").read_text())
        ingress = json.loads(settings["data"]["ingress"])
        ingress |= {"disableIstioVirtualHost": True, "disableIngressCreation": True}
        settings["data"]["ingress"] = json.dumps(ingress)
        settings["data"]["deploy"] = json.dumps({"defaultDeploymentMode": "RawDeployment"})
        self.api.apply("/api/v1/namespaces/kserve/configmaps/inferenceservice-config", settings)

    def start(self) -> int:
        """Start the manager. Returns its pid."""
        pair = self.plane.authority.issue("webhook", "webhook", [alternative_names(["localhost"], ["127.0.0.1"])])
        certificates = self._directory / "k8s-webhook-server/serving-certs"
        certificates.mkdir(parents=True)
        (certificates / "tls.crt").write_bytes(pair.certificate.read_bytes())
        (certificates / "tls.key").write_bytes(pair.key.read_bytes())
        environment = {
            "KUBECONFIG": str(self.plane.kubeconfig),
            "POD_NAMESPACE": "kserve",
            "TMPDIR": str(self._directory),
        }
        command: list[str | Path] = [
            binaries.ensure("kserve") / "kserve-manager",
            "--metrics-addr=0",
            "--health-probe-addr=0",
        ]
        self.plane.daemons.start("kserve", [*command, "--webhook-port=19443"], environment=environment)
        pid = self.plane.daemons.pid("kserve")
        assert pid is not None
        return pid

    def create(self, names: list[str]) -> None:
        """Create InferenceServices, eight at a time."""
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: self.api.create(INFERENCE_SERVICES, inference_service(name)), names))

    def served(self) -> int:
        """InferenceServices that have a Deployment and a status."""
        deployments = {item["metadata"]["name"] for item in self.api.list(DEPLOYMENTS, NAMESPACE)}
        services = self.api.list(INFERENCE_SERVICES, NAMESPACE)
        return sum(f"{i['metadata']['name']}-predictor" in deployments and bool(i.get("status")) for i in services)


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


@contextlib.contextmanager
def rival(directory: Path) -> Iterator[Rival]:
    """Use as a context manager; everything is gone afterwards."""
    binaries.ensure("kserve", "kserve-config")
    plane = start_control_plane(directory / "plane")
    try:
        running = Rival(plane, directory)
        running.install()
        yield running
    finally:
        plane.stop()


def measure(running: Rival, count: int, edits: int) -> dict[str, Any]:
    """All figures, in the order of `operator_scale`."""
    names = [f"llm-{number}" for number in range(count)]
    wait_for("its API", lambda: running.api.find(INFERENCE_SERVICES, NAMESPACE, "none") is None, 60)
    running.create(names)
    begun = time.monotonic()
    pid = running.start()
    wait_for("every service has its Deployment and status", lambda: running.served() == count, 1800)
    cold = time.monotonic() - begun
    memory = resident_mib(pid)
    print(f"cold start {cold:.1f} s, {memory:.0f} MiB", flush=True)
    settled = edit(running, names[0], edits, limit=3000)  # behind all that it still has to do, and so not counted
    print(f"the first edit came through after {settled:.1f} s", flush=True)
    latencies = [edit(running, names[number * 7 % count], number) for number in range(edits)]
    return {
        "operator": "KServe 0.15.2, RawDeployment, custom container, client at its default of 20 requests a second",
        "services": count,
        "cold_start_seconds": round(cold, 1),
        "first_edit_seconds": round(settled, 1),
        "memory_mib": round(memory),
        "memory_after_edits_mib": round(resident_mib(pid)),
        "edit_to_deployment_p50_ms": round(percentile(latencies, 0.5) * 1000),
        "edit_to_deployment_p99_ms": round(percentile(latencies, 0.99) * 1000),
        "edit_to_deployment_max_ms": round(max(latencies) * 1000),
    }


def edit(running: Rival, name: str, number: int, limit: float = 600) -> float:
    """Seconds, at most `limit`, from an edit of the spec until a watch of the Deployment shows it."""
    wanted = f"--max-num-seqs={number % 200 + 10}"
    spec = {"spec": inference_service(name, wanted)["spec"]}
    return until_shown(
        running.api,
        f"{name}-predictor",
        wanted,
        lambda: running.api.patch(INFERENCE_SERVICES, NAMESPACE, name, spec),
        limit,
    )


if __name__ == "__main__":
    main()
