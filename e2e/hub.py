"""A hub in the cluster: the model that the engine's image carries, on a server that can be made to misbehave."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.cluster.kubectl import Kubectl

MANIFEST = Path(__file__).parent / "manifests" / "hub.yaml"
SCRIPT = Path(__file__).parent / "hub_server.py"
URL = "http://hub:8080"
WEIGHTS = "model.safetensors"

_ASK = """
import sys, urllib.request
path, body = sys.argv[1], sys.argv[2].encode() or None
print(urllib.request.urlopen(urllib.request.Request('http://127.0.0.1:8080' + path, body)).read().decode())
"""


@dataclass
class Hub:
    """The Deployment and Service `hub` of one namespace."""

    kubectl: Kubectl
    namespace: str

    def start(self, engine_image: str) -> None:
        script = self.kubectl("create", "configmap", "hub", f"--from-file={SCRIPT}", "--dry-run=client", "-o", "yaml")
        self.kubectl("apply", "-n", self.namespace, "-f", "-", input=script)
        manifest = MANIFEST.read_text().replace("ENGINE_IMAGE", engine_image)
        self.kubectl("apply", "-n", self.namespace, "-f", "-", input=manifest)
        self._rolled_out()

    def stop(self) -> None:
        self.kubectl("scale", "deployment/hub", "-n", self.namespace, "--replicas=0")
        self.kubectl("wait", "pod", "-l", "app=hub", "-n", self.namespace, "--for=delete", "--timeout=60s")

    def misbehave(self, **faults: Any) -> None:
        """Set fields of `hub_server.Faults`."""
        self._ask("/faults", faults)

    def move(self, directory: str) -> None:
        """Make a directory of the hub's pod what `main` of quire/tiny is."""
        self._ask("/move", {"quire/tiny": directory})

    def run(self, *command: str) -> str:
        """Run a command in the hub's pod."""
        return self.kubectl("exec", "-n", self.namespace, "deployment/hub", "--", *command)

    def sent(self) -> list[tuple[int, int]]:
        """First byte and the one after the last of each piece of the weights that was sent."""
        return sorted((start, stop) for name, start, stop in self._ask("/sent") if name == WEIGHTS)

    def _ask(self, path: str, body: Any = None) -> Any:
        text = json.dumps(body) if body is not None else ""
        return json.loads(self.run("python3", "-c", _ASK, path, text))

    def _rolled_out(self) -> None:
        self.kubectl("rollout", "status", "deployment/hub", "-n", self.namespace, "--timeout=120s", timeout=150)
