"""The Service that clients reach, and its URL."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.builders.identity import Manifest, child_metadata, selector_labels
from quire_operator.settings import Settings


def build_service(service: LLMService) -> Manifest | None:
    """The Service NAME; none while suspended."""
    if service.spec.suspend:
        return None
    metadata = child_metadata(service)
    if service.spec.service.annotations:
        metadata["annotations"] = dict(service.spec.service.annotations)
    spec: Manifest = {
        "type": service.spec.service.type,
        "selector": selector_labels(service),
        "ports": [
            {
                "name": "http",
                "port": service.spec.service.port,
                "targetPort": "http",
                "protocol": "TCP",
                "appProtocol": "http",
            }
        ],
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def service_url(service: LLMService, settings: Settings) -> str:
    """Base URL for an OpenAI client inside the cluster."""
    host = f"{service.metadata.name}.{service.metadata.namespace}.svc.{settings.cluster_domain}"
    return f"http://{host}:{service.spec.service.port}/v1"
