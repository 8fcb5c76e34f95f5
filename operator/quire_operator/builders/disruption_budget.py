"""The PodDisruptionBudget: a node drain takes one replica at a time."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.builders.identity import Manifest, child_metadata, engine_pods

SUFFIX = "pdb"


def build_disruption_budget(service: LLMService) -> Manifest | None:
    """NAME-pdb; none while suspended. By maxUnavailable, since minAvailable would block a drain at one replica.

    Of groups too it is one pod: with it goes its group, whose other pods are then unavailable as well.
    """
    if service.spec.suspend:
        return None
    spec: Manifest = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": engine_pods(service),
    }
    metadata = child_metadata(service, SUFFIX)
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata, "spec": spec}
