"""prometheus-adapter as a process of the machine: custom metrics, which plain HPAs scale on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster import network
from e2e.cluster.addons import prometheus
from e2e.cluster.addons.addon import Addon, Manifest, RunningNode
from e2e.cluster.addons.host_service import aggregated_api, host_service, namespace
from e2e.cluster.certificates import KeyPair, alternative_names

NAMESPACE, SERVICE = "custom-metrics", "prometheus-adapter"
API = "custom.metrics.k8s.io"
_PORT = 6445

WAITING_RULE: Manifest = {
    "seriesQuery": 'vllm:num_requests_waiting{namespace!="",pod!=""}',
    "resources": {"overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}},
    "name": {"as": "vllm_num_requests_waiting"},
    "metricsQuery": "sum(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)",
}


class Adapter(Addon):
    """prometheus-adapter on our Prometheus, with the rules that it was last given."""

    name = "adapter"
    programs = ("prometheus-adapter",)
    requires = ("prometheus",)

    def __init__(self, node: RunningNode) -> None:
        super().__init__(node)
        self._directory = node.directory / "prometheus-adapter"

    def start(self, rules: Sequence[Manifest] = (WAITING_RULE,)) -> None:
        """Start it with these rules and return once custom metrics are served. Other rules than before restart it."""
        self._directory.mkdir(exist_ok=True)
        authority = self.node.authority.pair.certificate
        self.node.apply(
            namespace(NAMESPACE),
            *host_service(NAMESPACE, SERVICE, port=443, listens_on=_PORT),
            aggregated_api(API, "v1beta1", NAMESPACE, SERVICE, authority),
        )
        daemons, kubectl = self.node.daemons, self.node.kubectl
        file, text = self._directory / "config.json", json.dumps({"rules": list(rules)}, indent=2)
        if daemons.is_running(SERVICE) and file.read_text() != text:
            daemons.stop(SERVICE)
        if not daemons.is_running(SERVICE):
            file.write_text(text)
            pair = self.node.authority.issue(
                SERVICE, SERVICE, [alternative_names([f"{SERVICE}.{NAMESPACE}.svc"], [network.ADDRESS])]
            )
            daemons.start(SERVICE, [self.node.bin / SERVICE, *self._flags(file, pair)])
        daemons.wait_until(
            SERVICE,
            lambda: kubectl.attempt("get", "--raw", f"/apis/{API}/v1beta1").returncode == 0,
            seconds=60,
            what="custom metrics are served",
        )

    def is_up(self) -> bool:
        """Whether it runs."""
        return self.node.daemons.is_running(SERVICE)

    def _flags(self, config: Path, pair: KeyPair) -> list[str]:
        kubeconfig = self.node.kubectl.kubeconfig
        return [
            f"--secure-port={_PORT}",
            f"--bind-address={network.ADDRESS}",
            f"--tls-cert-file={pair.certificate}",
            f"--tls-private-key-file={pair.key}",
            f"--client-ca-file={self.node.authority.pair.certificate}",
            f"--lister-kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            f"--prometheus-url={prometheus.URL}",
            f"--config={config}",
            "--metrics-relist-interval=2s",  # a metric that is new is there as soon as it is scraped
            "--metrics-max-age=1m",
        ]
