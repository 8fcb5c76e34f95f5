"""The PersistentVolumeClaim that keeps downloaded weights."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.api.quantity import parse_quantity
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.identity import Manifest, child_metadata
from quire_operator.plan.claim_modes import ClaimFacts

SUFFIX = "cache"


def build_claim(service: LLMService, circumstances: Circumstances) -> Manifest | None:
    """NAME-cache, where spec.cache.volume asks for one. The API server lets none ask for less than it does."""
    volume = service.spec.cache.volume if service.spec.cache else None
    if volume is None:
        return None
    size = max(filter(None, (volume.size, circumstances.claim_size)), key=parse_quantity)
    spec: Manifest = {"accessModes": list(volume.access_modes), "resources": {"requests": {"storage": size}}}
    if volume.storage_class_name is not None:
        spec["storageClassName"] = volume.storage_class_name
    # without an owner the garbage collector leaves it, and a new LLMService of this name takes it over
    metadata = child_metadata(service, SUFFIX, owned=volume.reclaim == "Delete")
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def claim_facts(service: LLMService) -> ClaimFacts | None:
    """What is known of the claim that spec.cache.volume asks for; None without one."""
    volume = service.spec.cache.volume if service.spec.cache else None
    return ClaimFacts(f"{service.metadata.name}-{SUFFIX}", tuple(volume.access_modes)) if volume is not None else None


def cache_claim_name(service: LLMService) -> str | None:
    """The claim that HF_HOME lies on, the operator's or the user's; None without one."""
    cache = service.spec.cache
    if cache is None:
        return None
    return f"{service.metadata.name}-{SUFFIX}" if cache.volume is not None else cache.claim_name
