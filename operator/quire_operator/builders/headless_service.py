"""The headless Service by which every pod is reached on its own, ready or not: for scraping."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.builders.engines import engine_of
from quire_operator.builders.identity import Manifest, child_metadata, selector_labels

SUFFIX = "pods"


def build_headless_service(service: LLMService) -> Manifest | None:
    """NAME-pods; none while suspended."""
    if service.spec.suspend:
        return None
    spec: Manifest = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": selector_labels(service),
        "ports": [{"name": "http", "port": engine_of(service).port, "targetPort": "http", "protocol": "TCP"}],
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": child_metadata(service, SUFFIX), "spec": spec}
