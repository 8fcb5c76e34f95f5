"""prometheus-operator's custom resource definitions, without prometheus-operator: ServiceMonitors are only kept."""

from __future__ import annotations

from e2e.cluster import binaries
from e2e.cluster.addons.addon import Addon

_SOME = "servicemonitors.monitoring.coreos.com"


class MonitoringCrds(Addon):
    """ServiceMonitor, PodMonitor, PrometheusRule and the other kinds of monitoring.coreos.com."""

    name = "monitoring-crds"
    programs = ("monitoring-crds",)

    def start(self) -> None:
        """Apply the definitions and return once the API server serves them."""
        files = sorted(binaries.folder("monitoring-crds").glob("*.yaml"))
        self.node.kubectl("apply", "--server-side", *(f"--filename={file}" for file in files))
        names = [f"crd/{file.stem.partition('_')[2]}.monitoring.coreos.com" for file in files]
        self.node.kubectl("wait", "--for=condition=Established", *names, "--timeout=60s")

    def is_up(self) -> bool:
        """Whether the API server has them."""
        return self.node.kubectl.attempt("get", "crd", _SOME).returncode == 0
