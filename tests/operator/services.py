"""LLMServices for tests: the smallest one, with what a test is about laid over it."""

from __future__ import annotations

from typing import Any

from quire_operator.api import LLMService, parse_llmservice
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.strategic_merge import merge
from quire_operator.settings import Settings

SETTINGS = Settings(engine_image="quire/engine:test")
CIRCUMSTANCES = Circumstances(SETTINGS)
"""A cluster without any optional API."""


def manifest(name: str = "llama", namespace: str = "default", **spec: Any) -> dict[str, Any]:
    """A valid LLMService on the CPU, with `spec` merged over it."""
    base = {
        "model": {"source": "image:///models/tiny"},
        "resources": {"gpu": {"count": 0}, "cpu": "2", "memory": "4Gi"},
    }
    return {
        "apiVersion": "serving.quire.dev/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": merge(base, spec),
    }


def service(name: str = "llama", **spec: Any) -> LLMService:
    """The same, parsed, as an object that the API server has given an identity."""
    body = manifest(name, **spec)
    body["metadata"] |= {"uid": "11111111-2222-3333-4444-555555555555", "generation": 1}
    return parse_llmservice(body)
