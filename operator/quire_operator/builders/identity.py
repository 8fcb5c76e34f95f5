"""Names, labels and ownership: how the children of an LLMService are told from everything else."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from quire_operator import __version__
from quire_operator.api import API_VERSION, GROUP, KIND, LLMService

Manifest = dict[str, Any]
"""A Kubernetes object as it goes over the wire."""

FIELD_MANAGER = "quire-operator"
SERVICE_LABEL = f"{GROUP}/llmservice"
CACHED_REVISION = f"{GROUP}/cached-revision"
"""Annotation of pods: the revision of the model that they load from the cache's claim."""
CACHED_ADAPTERS = f"{GROUP}/cached-adapters"
"""Annotation of pods: the revisions of adapters that they load from there, with commas in between."""
PREFETCH_LABEL = f"{GROUP}/prefetch"
"""Key of the download that a Job and its pod are for; several LLMServices may wait for one."""

COMPONENT_LABEL = "app.kubernetes.io/component"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
APPLIED_HASH = f"{GROUP}/applied-hash"
"""Annotation of every child: digest of what was applied, so that a field we no longer want is noticed."""
TEMPLATE_HASH = f"{GROUP}/template-hash"
"""Annotation of every pod: digest of the template that made it, which tells new pods from old ones."""


def selector_labels(service: LLMService) -> dict[str, str]:
    """What Services and the Deployment select by. Fixed for ever: a Deployment's selector cannot change."""
    return {SERVICE_LABEL: service.metadata.name, COMPONENT_LABEL: "engine"}


def worker_labels(service: LLMService) -> dict[str, str]:
    """What tells the pods of a group that follow its leader: no request goes to them, so no Service selects them."""
    return {SERVICE_LABEL: service.metadata.name, COMPONENT_LABEL: "worker"}


def engine_pods(service: LLMService) -> Manifest:
    """A label selector of all pods in which an engine runs, those that take no request included."""
    if service.spec.parallelism.nodes == 1:
        return {"matchLabels": selector_labels(service)}
    components = {"key": COMPONENT_LABEL, "operator": "In", "values": ["engine", "worker"]}
    return {"matchLabels": {SERVICE_LABEL: service.metadata.name}, "matchExpressions": [components]}


def labels(service: LLMService) -> dict[str, str]:
    """The labels of every child."""
    return {
        "app.kubernetes.io/name": "quire",
        "app.kubernetes.io/instance": service.metadata.name,
        MANAGED_BY_LABEL: FIELD_MANAGER,
        **selector_labels(service),
    }


def child_metadata(service: LLMService, suffix: str = "", *, owned: bool = True) -> Manifest:
    """Metadata of the child NAME or NAME-SUFFIX. `owned` children go when the LLMService does."""
    name = f"{service.metadata.name}-{suffix}" if suffix else service.metadata.name
    metadata: Manifest = {
        "name": name,
        "namespace": service.metadata.namespace,
        "labels": {**labels(service), "app.kubernetes.io/version": __version__},
    }
    if owned and service.metadata.uid:
        metadata["ownerReferences"] = [owner_reference(service)]
    return metadata


def owner_reference(service: LLMService) -> Manifest:
    """Makes the garbage collector remove the child with the LLMService."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": service.metadata.name,
        "uid": service.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def digest(value: Any) -> str:
    """A short hash of plain data, the same in every process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
