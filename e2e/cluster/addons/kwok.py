"""kwok as a process of the machine: nodes that are objects alone, and whose pods say that they run and serve."""

from __future__ import annotations

import json
from collections.abc import Mapping

from e2e.cluster import network
from e2e.cluster.addons.addon import Addon, Manifest

FAKE = "kwok.x-k8s.io/node"
"""The nodes' annotation, by which kwok knows them, and their taint, which keeps pods away that do not ask for them."""

_POD_RANGE = "10.245.0.1/16"
_SIZES = {"cpu": "192", "memory": "2Ti", "pods": "110", "ephemeral-storage": "1Ti"}


class Kwok(Addon):
    """kwok, without any node at first."""

    name = "kwok"
    programs = ("kwok",)

    def start(self) -> None:
        """Start it."""
        if not self.is_up():
            command = [
                str(self.node.bin / "kwok"),
                f"--kubeconfig={self.node.kubectl.kubeconfig}",
                f"--manage-nodes-with-annotation-selector={FAKE}=fake",
                f"--cidr={_POD_RANGE}",
                f"--node-ip={network.ADDRESS}",
                "--node-lease-duration-seconds=40",  # without a lease a node is taken for lost between two heartbeats
            ]
            self.node.daemons.start(self.name, command)

    def is_up(self) -> bool:
        """Whether it runs."""
        return self.node.daemons.is_running(self.name)

    def add_node(self, name: str, *, gpus: int = 8, labels: Mapping[str, str] | None = None) -> None:
        """Add a node with the taint FAKE and the usual one of GPU nodes, and return once it is Ready."""
        self.node.kubectl("create", "-f", "-", input=json.dumps(_node(name, gpus, labels or {})))
        self.node.kubectl("wait", "--for=condition=Ready", f"node/{name}", "--timeout=30s")

    def remove_node(self, name: str) -> None:
        """Take a node away, without a word to its pods."""
        self.node.kubectl("delete", "node", name, "--ignore-not-found")


def _node(name: str, gpus: int, labels: Mapping[str, str]) -> Manifest:
    sizes = {**_SIZES, "nvidia.com/gpu": str(gpus)}
    taints = [{"key": key, "value": "fake", "effect": "NoSchedule"} for key in (FAKE, "nvidia.com/gpu")]
    usual = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "nvidia.com/gpu.count": str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {**usual, **labels}, "annotations": {FAKE: "fake"}},
        "spec": {"taints": taints},
        "status": {"capacity": sizes, "allocatable": sizes},
    }
