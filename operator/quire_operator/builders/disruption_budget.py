"""The PodDisruptionBudget: a node drain takes one replica at a time."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.builders.identity import Manifest, child_metadata, selector_labels

SUFFIX = "pdb"


def build_disruption_budget(service: LLMService) -> Manifest | None:
    """NAME-pdb; none while suspended. By maxUnavailable, since minAvailable would block a drain at one replica."""
    if service.spec.suspend:
        return None
    spec: Manifest = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": selector_labels(service)},
    }
    metadata = child_metadata(service, SUFFIX)
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata, "spec": spec}
