"""What every add-on is, and the node that it stands on."""

from __future__ import annotations

import json
import socket
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from e2e.cluster import locations, node
from e2e.cluster.certificates import Authority
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.processes import Daemons

Manifest = dict[str, Any]


class RunningNode:
    """The node as its add-ons see it: its folder and daemons, which `down` removes, and the admin's kubectl."""

    def __init__(self) -> None:
        self.directory = locations.state()
        self.bin = locations.binaries()
        self.daemons = Daemons(self.directory)
        self.authority = Authority(self.directory / "pki")
        self.kubectl = Kubectl(node.kubeconfig())

    def apply(self, *objects: Manifest) -> None:
        """Apply objects by server-side apply, whoever owned their fields before."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=text)

    def reaches(self, namespace: str, service: str) -> bool:
        """Whether a Service's own address takes connections: kube-proxy has heard of it, and its endpoint listens."""
        where = "jsonpath={.spec.clusterIP} {.spec.ports[0].port}"
        address, port = self.kubectl("get", "service", service, "-n", namespace, "-o", where).split()
        try:
            with socket.create_connection((address, int(port)), timeout=5):
                return True
        except OSError:
            return False


class Addon(ABC):
    """One add-on of a node that is up. It goes with the node: its processes, pods and objects are the node's."""

    name: ClassVar[str]
    programs: ClassVar[tuple[str, ...]] = ()
    """The recipes of what it runs."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Add-ons that are started before it."""

    def __init__(self, node: RunningNode) -> None:
        self.node = node

    @abstractmethod
    def start(self) -> None:
        """Start what of it does not run, and return once it serves. Raises ClusterError when it does not."""

    @abstractmethod
    def is_up(self) -> bool:
        """Whether all of it runs."""
