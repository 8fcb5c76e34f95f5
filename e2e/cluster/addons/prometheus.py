"""Prometheus as a process of the machine: it scrapes pods, answers queries and evaluates rules."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e2e.cluster import network
from e2e.cluster.addons.addon import Addon, Manifest, RunningNode
from e2e.cluster.addons.host_service import host_service, namespace
from e2e.cluster.errors import ClusterError

NAMESPACE, SERVICE, PORT = "monitoring", "prometheus", 9090
URL = f"http://{network.ADDRESS}:{PORT}"
IN_CLUSTER_URL = f"http://{SERVICE}.{NAMESPACE}.svc:{PORT}"
_INTERVAL = "2s"
_PATIENCE = 10.0

Sample = tuple[dict[str, str], float]


class Prometheus(Addon):
    """Prometheus, with what a test does to it: ask it, hand it rules and scrape configs, stop it and start it again."""

    name = "prometheus"
    programs = ("prometheus",)

    def __init__(self, node: RunningNode) -> None:
        super().__init__(node)
        self._directory = node.directory / "prometheus"

    def start(self) -> None:
        """Start it, on the series that it had before, and return once it answers queries."""
        for folder in ("rules", "scrape"):
            (self._directory / folder).mkdir(parents=True, exist_ok=True)
        file = self._directory / "prometheus.json"
        file.write_text(config(self.node.kubectl.kubeconfig))
        self.node.apply(namespace(NAMESPACE), *host_service(NAMESPACE, SERVICE, port=PORT, listens_on=PORT))
        daemons = self.node.daemons
        if not daemons.is_running(self.name):
            command: list[str | Path] = [
                self.node.bin / "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={self._directory / 'series'}",
                f"--web.listen-address={network.ADDRESS}:{PORT}",
                "--web.enable-lifecycle",  # rules are read again on request
                "--log.level=warn",
            ]
            daemons.start(self.name, command)
        daemons.wait_until(self.name, self._answers, seconds=60, what="Prometheus is ready")

    def stop(self) -> None:
        """Stop it: its clients see refused connections. `start` brings it back with its series and rules."""
        self.node.daemons.stop(self.name)

    def is_up(self) -> bool:
        """Whether it runs and answers."""
        return self.node.daemons.is_running(self.name) and self._answers()

    def query(self, promql: str) -> list[Sample]:
        """Evaluate an expression now: labels and value of each series, or one pair without labels for a scalar.

        Raises ClusterError with what Prometheus says of an expression that it does not take, and where it is down.
        """
        result = self._get("/api/v1/query", {"query": promql})["data"]
        if result["resultType"] == "scalar":
            return [({}, float(result["result"][1]))]
        return [(sample["metric"], float(sample["value"][1])) for sample in result["result"]]

    def load_rules(self, name: str, groups: Sequence[Manifest]) -> None:
        """Evaluate these rule groups, as in a PrometheusRule, until `remove_rules(name)`. The same name replaces them.

        A recording rule such as `{"record": "demand", "expr": "vector(3)"}` makes a series without a pod. Alerts are
        the series ALERTS. Raises ClusterError with what Prometheus says of a rule that it does not take.
        """
        self._load(self._directory / "rules" / f"{name}.json", {"groups": list(groups)})

    def remove_rules(self, name: str) -> None:
        """Forget the rules of this name."""
        self._remove(self._directory / "rules" / f"{name}.json")

    def load_scrape_configs(self, name: str, configs: Sequence[Manifest]) -> None:
        """Scrape by these configs too, such as prometheus-operator generates, until `remove_scrape_configs(name)`.

        Their service discovery asks this node's API server. Raises ClusterError for a config that is not taken.
        """
        kubeconfig = str(self.node.kubectl.kubeconfig)
        content = {"scrape_configs": [_with_kubeconfig(config, kubeconfig) for config in configs]}
        self._load(self._directory / "scrape" / f"{name}.json", content)

    def remove_scrape_configs(self, name: str) -> None:
        """Forget the scrape configs of this name."""
        self._remove(self._directory / "scrape" / f"{name}.json")

    def _load(self, file: Path, content: Manifest) -> None:
        before = file.read_text() if file.exists() else None
        file.write_text(json.dumps(content, indent=2))
        try:
            self._reload()
        except ClusterError:
            file.unlink() if before is None else file.write_text(before)  # or it would not start again
            raise

    def _remove(self, file: Path) -> None:
        file.unlink(missing_ok=True)
        if self.is_up():
            self._reload()

    def _reload(self) -> None:
        log = self.node.daemons.log(self.name)
        written = log.stat().st_size
        try:
            self._ask(urllib.request.Request(f"{URL}/-/reload", method="POST"))
        except ClusterError as error:  # its answer says only that there was an error
            reason = log.read_bytes()[written:].decode(errors="replace").strip()
            raise ClusterError(f"{error}\n{reason}") from error

    def _answers(self) -> bool:
        try:
            self._ask(urllib.request.Request(f"{URL}/-/ready"))
        except ClusterError:
            return False
        return True

    def _get(self, path: str, parameters: dict[str, str]) -> Manifest:
        answer = self._ask(urllib.request.Request(f"{URL}{path}?{urllib.parse.urlencode(parameters)}"))
        found: Manifest = json.loads(answer)
        return found

    def _ask(self, request: urllib.request.Request) -> bytes:
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace").strip()
            raise ClusterError(f"Prometheus refuses {request.full_url}: {text}") from error
        except OSError as error:
            raise ClusterError(f"Prometheus does not answer at {URL}: {error}") from error


def config(kubeconfig: Path) -> str:
    """Its configuration: YAML, of which JSON is a part. Pods are scraped that ask for it by the usual annotations."""
    annotation = "__meta_kubernetes_pod_annotation_prometheus_io"
    pod = "__meta_kubernetes_pod"
    pods = {
        "job_name": "pods",
        "honor_labels": True,  # the namespace of a series about an LLMService is that of the LLMService
        "kubernetes_sd_configs": [{"role": "pod", "kubeconfig_file": str(kubeconfig)}],
        "relabel_configs": [
            {"source_labels": [f"{annotation}_scrape"], "regex": "true", "action": "keep"},
            {"source_labels": [f"{pod}_phase"], "regex": "Pending|Succeeded|Failed", "action": "drop"},
            {"source_labels": [f"{annotation}_path"], "regex": "(.+)", "target_label": "__metrics_path__"},
            {
                "source_labels": [f"{pod}_ip", f"{annotation}_port"],
                "separator": ":",
                "regex": r"(.+:\d+)",  # without the annotation, the container's own port stays
                "target_label": "__address__",
            },
            {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
            {"source_labels": [f"{pod}_name"], "target_label": "pod"},
            {"source_labels": [f"{pod}_label_serving_quire_dev_llmservice"], "target_label": "llmservice"},
        ],
    }
    whole = {
        "global": {"scrape_interval": _INTERVAL, "scrape_timeout": _INTERVAL, "evaluation_interval": _INTERVAL},
        "rule_files": ["rules/*.json"],
        "scrape_config_files": ["scrape/*.json"],
        "scrape_configs": [pods],
    }
    return json.dumps(whole, indent=2)


def _with_kubeconfig(config: Manifest, kubeconfig: str) -> Manifest:
    """A scrape config for a Prometheus outside the cluster."""
    discoveries: list[dict[str, Any]] = config.get("kubernetes_sd_configs", [])
    return {**config, "kubernetes_sd_configs": [{**each, "kubeconfig_file": kubeconfig} for each in discoveries]}
