"""What a Prometheus would scrape by ServiceMonitors and PodMonitors, as prometheus-operator itself has it."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from e2e.cluster import binaries
from e2e.cluster.errors import ClusterError


def scrape_configs(*monitors: dict[str, Any]) -> list[dict[str, Any]]:
    """The scrape configs that prometheus-operator generates for these objects, for a Prometheus that selects them all.

    It takes no cluster. Raises ClusterError with the reason where prometheus-operator would reject one, and for a field
    that their kind does not have.
    """
    program = binaries.ensure("promconfig") / "promconfig"
    documents = "\n---\n".join(json.dumps(monitor) for monitor in monitors)
    result = subprocess.run([program], input=documents, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ClusterError(result.stderr.strip())
    # each replica's config reloader puts in the number of its shard; of one shard that is 0
    found: list[dict[str, Any]] = json.loads(result.stdout.replace("$(SHARD)", "0"))
    return found
