"""Where things lie in the engine's container."""

from __future__ import annotations

from collections.abc import Mapping

from quire_operator.api import ClaimSource, HubSource, ImageSource, LLMService, ModelSource, parse_source

HOME = "/home/quire"
"""Writable, and gone with the pod."""

CACHE_PATH = "/models/cache"
"""Where the cache's claim is mounted."""

LOCAL_PATH = "/models/local"
"""Where the node-local copy is mounted."""

CLAIM_PATH = "/models/claim"
"""Where the claim of a pvc:// source is mounted."""


def model_location(service: LLMService) -> str:
    """What the engine loads: a directory of the pod, or a name on the hub."""
    return location(service, service.spec.model.source)


def location(service: LLMService, source: str) -> str:
    """Where the engine finds one of the service's sources: the model, an adapter or a draft model."""
    match parse_source(source):
        case HubSource(repository=repository):
            return repository
        case ClaimSource(claim=claim, path=path):
            root = claim_paths(service)[claim]
            return f"{root}/{path}" if path else root
        case ImageSource(path=path):
            return path


def claim_paths(service: LLMService) -> Mapping[str, str]:
    """Where each claim that holds a source is mounted; the model's own comes first."""
    paths: dict[str, str] = {}
    for number, source in enumerate(sources(service)):
        if isinstance(source, ClaimSource) and source.claim not in paths:
            paths[source.claim] = CLAIM_PATH if number == 0 else f"{CLAIM_PATH}s/{source.claim}"
    return paths


def hub_home(service: LLMService) -> str | None:
    """HF_HOME of a service that downloads something; None for one that has everything in its pod."""
    if not any(isinstance(source, HubSource) for source in sources(service)):
        return None
    cache = service.spec.cache
    if cache is None:
        return f"{HOME}/huggingface"
    return CACHE_PATH if cache.local is None else LOCAL_PATH


def sources(service: LLMService) -> list[ModelSource]:
    """Everything that the engine loads, the model first."""
    spec = service.spec
    texts = [spec.model.source, *(adapter.source for adapter in spec.model.adapters)]
    if spec.engine.speculative is not None and spec.engine.speculative.model is not None:
        texts.append(spec.engine.speculative.model)
    return [parse_source(text) for text in texts]
