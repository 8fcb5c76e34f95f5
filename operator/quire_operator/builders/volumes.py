"""The pod's volumes, each with its place in the container."""

from __future__ import annotations

from quire_operator.api import ClaimSource, HubSource, LLMService, parse_source
from quire_operator.builders.claim import cache_claim_name
from quire_operator.builders.identity import Manifest
from quire_operator.builders.paths import CACHE_PATH, CLAIM_PATH, HOME


def volumes(service: LLMService) -> list[Manifest]:
    """`spec.volumes` of the pod. The root file system is read-only, so whatever is written has a volume here."""
    shared_memory = {"medium": "Memory", "sizeLimit": service.spec.resources.shared_memory_or_default}
    result: list[Manifest] = [
        {"name": "shm", "emptyDir": shared_memory},
        {"name": "tmp", "emptyDir": {}},
        {"name": "home", "emptyDir": {}},
    ]
    source = parse_source(service.spec.model.source)
    if isinstance(source, ClaimSource):
        result.append({"name": "model", "persistentVolumeClaim": {"claimName": source.claim, "readOnly": True}})
    cache = cache_claim_name(service)
    if cache is not None and isinstance(source, HubSource):
        result.append({"name": "cache", "persistentVolumeClaim": {"claimName": cache}})
    return result


def volume_mounts(service: LLMService) -> list[Manifest]:
    """`volumeMounts` of the engine, one for each of `volumes`."""
    places: dict[str, Manifest] = {
        "shm": {"mountPath": "/dev/shm"},
        "tmp": {"mountPath": "/tmp"},
        "home": {"mountPath": HOME},
        "model": {"mountPath": CLAIM_PATH, "readOnly": True},
        "cache": {"mountPath": CACHE_PATH},
    }
    return [{"name": volume["name"], **places[volume["name"]]} for volume in volumes(service)]
