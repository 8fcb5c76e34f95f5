"""The headless Service by which every pod is reached on its own, ready or not: for scraping."""

from __future__ import annotations

from quire_operator.api import GROUP, LLMService
from quire_operator.builders.engines import engine_of
from quire_operator.builders.identity import Manifest, child_metadata, selector_labels

SUFFIX = "pods"
SCRAPED_LABEL = f"{GROUP}/scraped"
"""Tells it from the Service that clients reach: by both, each pod would be scraped twice."""


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
    metadata = child_metadata(service, SUFFIX)
    metadata["labels"][SCRAPED_LABEL] = "true"
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
