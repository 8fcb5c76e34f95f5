"""Claims, services whose models are on them, and what a controller and a kubelet make of the Job that reads them."""

from __future__ import annotations

from typing import Any

from quire_operator.kubeapi.resources import CLAIMS, JOBS, PODS
from tests.operator.api_client import Namespace, Object, eventually
from tests.operator.services import manifest


def make_claim(namespace: Namespace, name: str = "models", phase: str = "Bound", mode: str = "ReadWriteMany") -> None:
    spec = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}
    metadata = {"name": name, "namespace": namespace.name}
    namespace.api.create(
        CLAIMS, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
    )
    namespace.api.set_status(CLAIMS, namespace.name, name, {"phase": phase})


def on_claim(name: str = "llama", memory: int = 24, path: str = "llama", **spec: Any) -> Object:
    gpu = {"count": 1, "memoryGiB": memory}
    return manifest(name, model={"source": f"pvc://models/{path}", "maxModelLen": 512}, resources={"gpu": gpu}, **spec)


def jobs(namespace: Namespace) -> list[Object]:
    return namespace.api.list(JOBS, namespace.name)


def add_pod(namespace: Namespace) -> str:
    """Make the pod of the one Job, as its controller would. Returns its name."""
    (job,) = eventually(lambda: jobs(namespace))
    template = job["spec"]["template"]
    labels = {**template["metadata"]["labels"], "batch.kubernetes.io/controller-uid": job["metadata"]["uid"]}
    metadata = {"name": f"{job['metadata']['name']}-x", "namespace": namespace.name, "labels": labels}
    namespace.api.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    return str(metadata["name"])


def say(namespace: Namespace, message: str, code: int = 0) -> None:
    """Let the pod of the one Job end with these last words, as its kubelet would report."""
    terminated = {"exitCode": code, "message": message, "reason": "Completed" if code == 0 else "Error"}
    status = {"name": "inspect", "image": "", "imageID": "", "ready": False, "restartCount": 0}
    phase = "Succeeded" if code == 0 else "Failed"
    body = {"phase": phase, "containerStatuses": [{**status, "state": {"terminated": terminated}}]}
    namespace.api.set_status(PODS, namespace.name, add_pod(namespace), body)
