"""The node-local copy of a model: its volume, and the init container that fills it from the claim or the hub."""

from __future__ import annotations

from quire_operator.api import HubSource, LLMService, parse_source
from quire_operator.api.cache import LocalCache
from quire_operator.builders.cached_model import BRANCH, reads_any_format
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.claim import cache_claim_name
from quire_operator.builders.downloader import downloader, hub_variables, plain
from quire_operator.builders.identity import Manifest
from quire_operator.builders.paths import CACHE_PATH, HOME, LOCAL_PATH

STAGE_CONTAINER = "stage"


def local_copy_of(service: LLMService) -> LocalCache | None:
    """spec.cache.local of a model that comes from a hub."""
    cache = service.spec.cache
    is_of_hub = isinstance(parse_source(service.spec.model.source), HubSource)
    return cache.local if cache is not None and is_of_hub else None


def local_volume(local: LocalCache) -> Manifest:
    """Where the copy lies: a directory that all pods of the node share, or a volume of the pod's own."""
    if local.host_path is not None:
        return {"hostPath": {"path": local.host_path, "type": "DirectoryOrCreate"}}
    volume = local.ephemeral_volume
    assert volume is not None
    spec: Manifest = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": volume.size}}}
    if volume.storage_class_name is not None:
        spec["storageClassName"] = volume.storage_class_name
    return {"ephemeral": {"volumeClaimTemplate": {"spec": spec}}}


def stage_containers(service: LLMService, circumstances: Circumstances) -> list[Manifest]:
    """The init container that ends once the copy is there, at once where another pod of the node has made it."""
    source = parse_source(service.spec.model.source)
    if local_copy_of(service) is None or not isinstance(source, HubSource):
        return []
    has_claim = cache_claim_name(service) is not None
    revision = circumstances.cached_revision or service.spec.model.revision or BRANCH
    command = ["quire-engine", "prefetch", source.repository, f"--revision={revision}", f"--cache={LOCAL_PATH}"]
    if reads_any_format(service):
        command.append("--any-format")
    variables = [plain("HOME", HOME)]
    mounts: list[Manifest] = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "home", "mountPath": HOME},
        {"name": "local", "mountPath": LOCAL_PATH},
    ]
    if has_claim:
        command.append(f"--from={CACHE_PATH}")
        mounts.append({"name": "cache", "mountPath": CACHE_PATH, "readOnly": True})
    else:
        variables += hub_variables(service, circumstances.settings)
    theirs = service.spec.engine.env
    replaced = {variable["name"] for variable in theirs}
    return [
        {
            **downloader(service, circumstances.settings),
            "name": STAGE_CONTAINER,
            "command": command,
            "env": [*(variable for variable in variables if variable["name"] not in replaced), *theirs],
            "volumeMounts": mounts,
        }
    ]
