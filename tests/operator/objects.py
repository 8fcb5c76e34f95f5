"""Which objects there are in a namespace, to tell whether any was made anew or written to."""

from __future__ import annotations

from quire_operator.builders.identity import SERVICE_LABEL
from quire_operator.kubeapi.resources import CHILDREN, LLMSERVICES, WATCHED
from tests.operator.api_client import ApiClient


def identities(api: ApiClient, namespace: str) -> set[tuple[str, str]]:
    """Name and uid of every child: an object that was made anew has another uid."""
    return {
        (item["metadata"]["name"], item["metadata"]["uid"])
        for resource in CHILDREN
        for item in api.list(resource, namespace)
    }


def versions(api: ApiClient, namespace: str) -> dict[tuple[str, str, str], str]:
    """Version of every LLMService, child and pod, by the service's name, the object's kind and its name."""
    return {
        (_service(item["metadata"]), resource.kind, item["metadata"]["name"]): item["metadata"]["resourceVersion"]
        for resource in (*WATCHED, LLMSERVICES)
        for item in api.list(resource, namespace)
    }


def _service(metadata: dict[str, object]) -> str:
    labels = metadata.get("labels")
    label = labels.get(SERVICE_LABEL) if isinstance(labels, dict) else None
    return str(label or metadata["name"])
