"""Where things lie in the engine's container."""

from __future__ import annotations

from quire_operator.api import ClaimSource, HubSource, ImageSource, LLMService, parse_source

HOME = "/home/quire"
"""Writable, and gone with the pod."""

CACHE_PATH = "/models/cache"
"""Where the cache's claim is mounted."""

CLAIM_PATH = "/models/claim"
"""Where the claim of a pvc:// source is mounted."""


def model_location(service: LLMService) -> str:
    """What the engine loads: a directory of the pod, or a name on the hub."""
    match parse_source(service.spec.model.source):
        case HubSource(repository=repository):
            return repository
        case ClaimSource(path=path):
            return f"{CLAIM_PATH}/{path}" if path else CLAIM_PATH
        case ImageSource(path=path):
            return path
