"""The pod's volumes, each with its place in the container."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.builders.cached_model import is_offline
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.claim import cache_claim_name
from quire_operator.builders.identity import Manifest
from quire_operator.builders.local_copy import local_copy_of, local_volume
from quire_operator.builders.paths import CACHE_PATH, CLAIM_PATH, HOME, LOCAL_PATH, claim_paths, hub_home


def volumes(service: LLMService, circumstances: Circumstances) -> list[Manifest]:
    """`spec.volumes` of the pod. The root file system is read-only, so whatever is written has a volume here."""
    return [{"name": name, **source} for name, source, _ in _places(service, circumstances)]


def volume_mounts(service: LLMService, circumstances: Circumstances) -> list[Manifest]:
    """`volumeMounts` of the engine, one for each of `volumes`."""
    return [{"name": name, **mount} for name, _, mount in _places(service, circumstances) if mount]


def _places(service: LLMService, circumstances: Circumstances) -> list[tuple[str, Manifest, Manifest]]:
    """Name, source and mount of each volume. One without a mount is for an init container."""
    shared_memory = {"medium": "Memory", "sizeLimit": service.spec.resources.shared_memory_or_default}
    places: list[tuple[str, Manifest, Manifest]] = [
        ("shm", {"emptyDir": shared_memory}, {"mountPath": "/dev/shm"}),
        ("tmp", {"emptyDir": {}}, {"mountPath": "/tmp"}),
        ("home", {"emptyDir": {}}, {"mountPath": HOME}),
    ]
    for number, (claim, path) in enumerate(claim_paths(service).items()):
        places.append(
            (
                "model" if path == CLAIM_PATH else f"claim-{number}",
                {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}},
                {"mountPath": path, "readOnly": True},
            )
        )
    cache, local = cache_claim_name(service), local_copy_of(service)
    read_only = {"readOnly": True} if is_offline(service, circumstances) else {}
    if cache is not None and hub_home(service) is not None:
        mount = {} if local is not None else {"mountPath": CACHE_PATH, **read_only}
        places.append(("cache", {"persistentVolumeClaim": {"claimName": cache}}, mount))
    if local is not None:
        places.append(("local", local_volume(local), {"mountPath": LOCAL_PATH, **read_only}))
    return places
