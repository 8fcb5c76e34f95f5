"""The node-local copy of model and adapters: its volume, and the init containers that fill it from claim or hub."""

from __future__ import annotations

from quire_operator.api import HubSource, LLMService, parse_source
from quire_operator.api.cache import LocalCache
from quire_operator.builders.cached_model import BRANCH, hub_adapters, reads_any_format
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.claim import cache_claim_name
from quire_operator.builders.downloader import downloader, hub_variables, plain
from quire_operator.builders.identity import Manifest
from quire_operator.builders.paths import CACHE_PATH, HOME, LOCAL_PATH, sources

STAGE_CONTAINER = "stage"


def local_copy_of(service: LLMService) -> LocalCache | None:
    """spec.cache.local of a service that loads something from a hub."""
    cache = service.spec.cache
    is_of_hub = any(isinstance(source, HubSource) for source in sources(service))
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
    """Init containers that end once their copy is there, at once where another pod of the node has made it."""
    if local_copy_of(service) is None:
        return []
    containers = []
    model = parse_source(service.spec.model.source)
    if isinstance(model, HubSource):
        revision = circumstances.cached_revision or service.spec.model.revision
        containers.append(_stage(service, circumstances, STAGE_CONTAINER, model.repository, revision))
    for number, (adapter, source) in enumerate(hub_adapters(service)):
        name = f"{STAGE_CONTAINER}-adapter-{number}"
        revision = circumstances.cached_adapters.get(adapter.name) or adapter.revision
        containers.append(_stage(service, circumstances, name, source.repository, revision, "--adapter"))
    return containers


def _stage(
    service: LLMService, circumstances: Circumstances, name: str, repository: str, revision: str | None, *flags: str
) -> Manifest:
    has_claim = cache_claim_name(service) is not None
    command = ["quire-engine", "prefetch", repository, f"--revision={revision or BRANCH}", f"--cache={LOCAL_PATH}"]
    command += flags
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
    return {
        **downloader(service, circumstances.settings),
        "name": name,
        "command": command,
        "env": [*(variable for variable in variables if variable["name"] not in replaced), *theirs],
        "volumeMounts": mounts,
    }
