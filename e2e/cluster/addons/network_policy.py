"""kube-router's firewall as a process of the machine: it enforces NetworkPolicies, which the bridge plugin ignores."""

from __future__ import annotations

import subprocess
from pathlib import Path

from e2e.cluster import node_config
from e2e.cluster.addons.addon import Addon
from e2e.cluster.control_plane import SERVICE_RANGE
from e2e.cluster.errors import ClusterError

_DAEMON = "kube-router"
_CHAIN = "KUBE-ROUTER-FORWARD"
_BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


class NetworkPolicy(Addon):
    """NetworkPolicies between pods, and between pods and the world. The machine itself always reaches its pods."""

    name = "network-policy"
    programs = ("kube-router",)

    def start(self) -> None:
        """Start it and return once its rules are in the way of packets."""
        if not _BRIDGED.exists():
            raise ClusterError(f"policies between pods need the kernel's br_netfilter, and there is no {_BRIDGED}")
        _BRIDGED.write_text("1")
        daemons = self.node.daemons
        if not daemons.is_running(_DAEMON):
            command: list[str | Path] = [
                self.node.bin / "kube-router",
                f"--kubeconfig={self.node.kubectl.kubeconfig}",
                f"--hostname-override={node_config.NODE}",
                f"--service-cluster-ip-range={SERVICE_RANGE}",
                "--run-firewall=true",
                "--run-router=false",
                "--run-service-proxy=false",
                "--health-port=0",
            ]
            daemons.start(_DAEMON, command)
        daemons.wait_until(_DAEMON, _has_rules, seconds=60, what="kube-router has written its rules")

    def is_up(self) -> bool:
        """Whether it runs."""
        return self.node.daemons.is_running(_DAEMON)


def _has_rules() -> bool:
    command = ["iptables", "--wait", "--list-rules", _CHAIN]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
