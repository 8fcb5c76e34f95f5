"""The pod: one engine, hardened, probed, and drained before it goes."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.builders.cached_model import pinned
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.downloader import HARDENED
from quire_operator.builders.engine_env import engine_env
from quire_operator.builders.engines import Engine, engine_of
from quire_operator.builders.identity import (
    CACHED_ADAPTERS,
    CACHED_REVISION,
    TEMPLATE_HASH,
    Manifest,
    digest,
    labels,
    selector_labels,
    worker_labels,
)
from quire_operator.builders.local_copy import stage_containers
from quire_operator.builders.scheduling import scheduling
from quire_operator.builders.service_account import service_account_name
from quire_operator.builders.strategic_merge import merge
from quire_operator.builders.volumes import volume_mounts, volumes

CONTAINER = "engine"
USER = 10001
"""uid and gid of the engine's image."""

SLACK_SECONDS = 15
"""Between the engine's own deadline and the kubelet's."""


def build_pod_template(service: LLMService, circumstances: Circumstances) -> Manifest:
    """The Deployment's `spec.template`, with spec.podTemplate merged over it and the hash of the result on it."""
    template = _serving(pinned(service, circumstances), circumstances)
    return _with_hash(template, digest(template))


def build_group_templates(service: LLMService, circumstances: Circumstances) -> tuple[Manifest, Manifest]:
    """Templates of a group's leader, which serves, and of its workers; with one hash, as they change together."""
    service = pinned(service, circumstances)
    leader, worker = _serving(service, circumstances), _following(service, circumstances)
    found = digest([leader, worker, service.spec.parallelism.nodes])
    return _with_hash(leader, found), _with_hash(worker, found)


def _serving(service: LLMService, circumstances: Circumstances) -> Manifest:
    engine = engine_of(service)
    container = {
        **_container(service, engine, circumstances),
        "ports": [{"name": "http", "containerPort": engine.port, "protocol": "TCP"}],
        **_probes(service, engine),
        "lifecycle": {"preStop": engine.pre_stop},
    }
    template = _template(service, circumstances, container, _grace(service, engine))
    template["metadata"]["annotations"] |= _scrape_annotations(engine)
    return _merged(service, template, selector_labels(service))


def _following(service: LLMService, circumstances: Circumstances) -> Manifest:
    """No port, probe or drain: it serves through its leader, which LeaderWorkerSet restarts along with it.

    It has as long to go as its leader, whose answers need it to the last.
    """
    engine = engine_of(service)
    container = {**_container(service, engine, circumstances), "args": list(engine.worker_args)}
    template = _template(service, circumstances, container, _grace(service, engine))
    return _merged(service, template, worker_labels(service))


def _grace(service: LLMService, engine: Engine) -> int:
    return engine.pre_stop_seconds + service.spec.rollout.drain_seconds + SLACK_SECONDS


def _merged(service: LLMService, ours: Manifest, fixed: dict[str, str]) -> Manifest:
    """spec.podTemplate laid over `ours`, but for the labels that are selected by."""
    template = merge(ours, service.spec.pod_template)
    metadata = template.setdefault("metadata", {})
    metadata["labels"] = {**metadata.get("labels", {}), **fixed}
    return template


def _with_hash(template: Manifest, found: str) -> Manifest:
    metadata = template["metadata"]
    return {
        **template,
        "metadata": {**metadata, "annotations": {**metadata.get("annotations", {}), TEMPLATE_HASH: found}},
    }


def _template(service: LLMService, circumstances: Circumstances, container: Manifest, grace: int) -> Manifest:
    before = stage_containers(service, circumstances)
    return {
        "metadata": {"labels": labels(service), "annotations": _cache_annotations(circumstances)},
        "spec": {
            "serviceAccountName": service_account_name(service),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": grace,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **({"initContainers": before} if before else {}),
            "containers": [container],
            "volumes": volumes(service, circumstances),
            **scheduling(service),
        },
    }


def _container(service: LLMService, engine: Engine, circumstances: Circumstances) -> Manifest:
    return {
        "name": CONTAINER,
        "image": service.spec.engine.image or circumstances.settings.engine_image,
        **({"command": list(engine.command)} if engine.command else {}),
        "args": list(engine.args),
        "env": engine_env(service, circumstances),
        "resources": _resources(service),
        "volumeMounts": volume_mounts(service, circumstances),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": dict(HARDENED),
    }


def _resources(service: LLMService) -> Manifest:
    resources, gpus = service.spec.resources, service.spec.gpus_per_pod
    requests = {"cpu": resources.cpu, "memory": resources.memory}
    limits = {"memory": resources.memory}
    if resources.cpu_limit is not None:
        limits["cpu"] = resources.cpu_limit
    if gpus:
        requests[resources.gpu.resource_name] = limits[resources.gpu.resource_name] = str(gpus)
    return {"requests": requests, "limits": limits}


def _probes(service: LLMService, engine: Engine) -> Manifest:
    health = {"httpGet": {"path": engine.health_path, "port": "http", "scheme": "HTTP"}}
    return {
        # every second: a longer period would be added to each cold start
        "startupProbe": {
            **health,
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": service.spec.probes.startup_seconds,
        },
        "readinessProbe": {**health, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3},
        # a busy engine answers late now and then; only one that is silent for a minute and a half is hung
        "livenessProbe": {**health, "periodSeconds": 15, "timeoutSeconds": 15, "failureThreshold": 6},
    }


def _cache_annotations(circumstances: Circumstances) -> dict[str, str]:
    revision, adapters = circumstances.cached_revision, sorted({*circumstances.cached_adapters.values()})
    return {
        **({CACHED_REVISION: revision} if revision is not None else {}),
        **({CACHED_ADAPTERS: ",".join(adapters)} if adapters else {}),
    }


def _scrape_annotations(engine: Engine) -> dict[str, str]:
    if not engine.is_scraped:
        return {}
    return {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(engine.port),
        "prometheus.io/path": engine.metrics_path,
    }
