"""Which object runs the engines: a Deployment, or a LeaderWorkerSet where several pods make up one replica."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.builders.identity import Manifest

GROUP_SUFFIX = "nodes"
"""LeaderWorkerSet makes a headless Service of its own name, which therefore cannot be that of the Service."""


def workload_reference(service: LLMService) -> Manifest:
    """apiVersion, kind and name: Deployment NAME, or LeaderWorkerSet NAME-nodes.

    It is what scalers scale, and never the LLMService: that would write the user's spec.
    """
    name = service.metadata.name
    if service.spec.parallelism.nodes > 1:
        return {
            "apiVersion": "leaderworkerset.x-k8s.io/v1",
            "kind": "LeaderWorkerSet",
            "name": f"{name}-{GROUP_SUFFIX}",
        }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
