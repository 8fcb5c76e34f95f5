"""One LLMService on the cluster: apply it, wait for it, look at what it became."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import openai

from e2e.cluster.kubectl import Kubectl

LABEL = "serving.quire.dev/llmservice"
CHILD_KINDS = "deployments,services,serviceaccounts,persistentvolumeclaims,poddisruptionbudgets,networkpolicies,pods"


def tiny_spec(**changes: Any) -> dict[str, Any]:
    """The spec of the small CPU service that most scenarios use, with top-level fields replaced by `changes`."""
    spec: dict[str, Any] = {
        "model": {"source": "image:///models/tiny", "name": "tiny"},
        "resources": {"gpu": {"count": 0}, "cpu": "200m", "memory": "1500Mi", "sharedMemory": "64Mi"},
        "replicas": 1,
        "probes": {"startupSeconds": 180},
    }
    return spec | changes


def until(what: str, condition: Callable[[], Any], seconds: float = 60, pause: float = 0.3) -> Any:
    """The first truthy value of `condition`. Raises `AssertionError` that names what did not come."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"after {seconds:.0f} s still not: {what}"
        time.sleep(pause)
    return value


@dataclass
class LLMService:
    """A handle on one object; it need not exist yet."""

    kubectl: Kubectl
    namespace: str
    name: str

    def apply(self, spec: dict[str, Any]) -> None:
        manifest = {
            "apiVersion": "serving.quire.dev/v1alpha1",
            "kind": "LLMService",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": spec,
        }
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=json.dumps(manifest))

    def get(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.kubectl("get", "llmservice", self.name, "-n", self.namespace, "-o", "json")
        )
        return found

    def condition(self, kind: str) -> dict[str, Any]:
        """The condition of this type, empty when it is not there."""
        conditions = self.get().get("status", {}).get("conditions", [])
        found: dict[str, Any] = next((c for c in conditions if c["type"] == kind), {})
        return found

    def is_ready(self) -> bool:
        """Ready for the generation that was applied last."""
        found = self.get()
        status = found.get("status", {})
        if status.get("observedGeneration") != found["metadata"]["generation"]:
            return False
        states = {c["type"]: c["status"] for c in status["conditions"]}
        return states.get("Ready") == "True" and states.get("Reconciling") != "True"

    def wait_ready(self, seconds: float = 120) -> None:
        """Until it is ready."""
        try:
            until(f"{self.name} Ready", self.is_ready, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from None

    def pods(self) -> list[dict[str, Any]]:
        selector = f"{LABEL}={self.name}"
        found = json.loads(self.kubectl("get", "pods", "-n", self.namespace, "-l", selector, "-o", "json"))
        return list(found["items"])

    def delete(self) -> None:
        self.kubectl("delete", "llmservice", self.name, "-n", self.namespace, "--ignore-not-found", "--wait=false")

    def address(self) -> str:
        """`http://CLUSTER-IP:PORT` of its Service."""
        service = json.loads(self.kubectl("get", "service", self.name, "-n", self.namespace, "-o", "json"))
        return f"http://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}"

    def client(self) -> openai.OpenAI:
        """A client that keeps its connections and never retries."""
        return openai.OpenAI(base_url=f"{self.address()}/v1", api_key="none", max_retries=0, timeout=120)

    def describe(self) -> str:
        """What a person would look at when it does not become ready."""
        parts = [
            self.kubectl.attempt("describe", "llmservice", self.name, "-n", self.namespace).stdout,
            self.kubectl.attempt("get", "pods,events", "-n", self.namespace, "-o", "wide").stdout,
            self._logs(),
        ]
        return "\n".join(parts)

    def _logs(self) -> str:
        command = ("logs", "-n", self.namespace, "-l", f"{LABEL}={self.name}", "--tail=20", "--prefix")
        try:
            return self.kubectl.attempt(*command, timeout=20).stdout
        except subprocess.TimeoutExpired:
            return ""
