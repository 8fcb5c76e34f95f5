"""The pods' identity, which may do nothing and of which no token is mounted."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.builders.identity import Manifest, child_metadata

SUFFIX = "engine"


def service_account_name(service: LLMService) -> str:
    """NAME-engine."""
    return f"{service.metadata.name}-{SUFFIX}"


def build_service_account(service: LLMService) -> Manifest | None:
    """NAME-engine; none while suspended."""
    if service.spec.suspend:
        return None
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": child_metadata(service, SUFFIX),
        "automountServiceAccountToken": False,
    }
