"""A Deployment of small pods that expose whatever metrics a test writes into them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from e2e.cluster.kubectl import Kubectl

PORT = 8080
_FILE = "/tmp/metrics"
# The smallest Debian has no web server, and has Perl.
_SERVER = f"""
use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalPort => {PORT}, Listen => 16, ReuseAddr => 1) or die $!;
while (1) {{
  my $client = $server->accept or next;
  while (my $line = <$client>) {{ last if $line =~ /^\\r?$/ }}
  my $text = do {{ local $/; open my $file, "<", "{_FILE}" or die $!; <$file> }};
  print $client "HTTP/1.1 200 OK\\r\\nContent-Type: text/plain; version=0.0.4\\r\\nConnection: close\\r\\n\\r\\n$text";
  close $client;
}}
"""


@dataclass
class MetricSource:
    """A handle on one Deployment; it need not exist yet. Each of its pods starts with the metrics in `text`."""

    kubectl: Kubectl
    namespace: str
    name: str
    text: str
    labels: dict[str, str] = field(default_factory=dict)
    """More labels of its pods."""

    def apply(self, replicas: int = 1) -> None:
        """Create it and return once its pods are ready."""
        self.kubectl(
            "apply", "--server-side", "-n", self.namespace, "-f", "-", input=json.dumps(self._manifest(replicas))
        )
        self.kubectl(
            "rollout", "status", f"deployment/{self.name}", "-n", self.namespace, "--timeout=120s", timeout=150
        )

    def expose(self, text: str) -> None:
        """Have every pod that is there now expose these metrics from now on."""
        for pod in self.pods():
            self.kubectl("exec", "-i", pod, "-n", self.namespace, "--", "sh", "-c", f"cat > {_FILE}", input=text)

    def pods(self) -> list[str]:
        """The names of its pods."""
        names = "jsonpath={.items[*].metadata.name}"
        return self.kubectl("get", "pods", "-n", self.namespace, "-l", f"app={self.name}", "-o", names).split()

    def replicas(self) -> int:
        """What its spec asks for now, whoever wrote it."""
        asked = "jsonpath={.spec.replicas}"
        return int(self.kubectl("get", "deployment", self.name, "-n", self.namespace, "-o", asked))

    def _manifest(self, replicas: int) -> dict[str, Any]:
        container = {
            "name": "metrics",
            "image": "debian:bookworm-slim",
            "command": ["sh", "-c", f'printf "%s\\n" "$METRICS" > {_FILE} && exec perl -e "$SERVER"'],
            "env": [{"name": "METRICS", "value": self.text}, {"name": "SERVER", "value": _SERVER}],
            "ports": [{"name": "metrics", "containerPort": PORT}],
            "readinessProbe": {"httpGet": {"port": PORT, "path": "/metrics"}, "periodSeconds": 1},
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        }
        annotations = {"prometheus.io/scrape": "true", "prometheus.io/port": str(PORT)}
        template = {
            "metadata": {"labels": {"app": self.name, **self.labels}, "annotations": annotations},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
        }
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": self.name},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": self.name}}, "template": template},
        }
