"""What is kept of a watched object: whole ones carry managed fields several times their own size."""

from __future__ import annotations

from typing import Any

from quire_operator.builders.identity import CACHED_ADAPTERS, CACHED_REVISION, FIELD_MANAGER, TEMPLATE_HASH
from quire_operator.kubeapi.client import Object

_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "labels",
    "annotations",
    "ownerReferences",
)
_POD_STATUS = ("phase", "reason", "message", "conditions", "containerStatuses", "initContainerStatuses")

_SCALER_STATUS = ("conditions", "desiredReplicas")
_SCALER_CONDITION = ("type", "status", "reason", "message")

OWNS_REPLICAS = "ownsReplicas"
"""Beside `metadata`: whether our field manager applied spec.replicas. It hands the count over before it lets go."""

APPLIED_AT = "appliedAt"
"""Beside `metadata`: when our field manager last changed something; None where it never did."""


def trim_child(item: Object) -> Object:
    """Everything but managed fields, of which only the two questions are kept that we ask."""
    trimmed = {key: value for key, value in item.items() if key not in ("metadata", "apiVersion", "kind")}
    trimmed["metadata"] = _metadata(item, _METADATA)
    trimmed[OWNS_REPLICAS] = _owns_replicas(item)
    trimmed[APPLIED_AT] = _applied_at(item)
    return trimmed


def trim_scaler(item: Object) -> Object:
    """As a child, with its finalizers and that part of the status which does not change each time metrics are read."""
    status = item.get("status") or {}
    kept = {key: status[key] for key in _SCALER_STATUS if key in status}
    if "conditions" in kept:
        kept["conditions"] = [{key: c[key] for key in _SCALER_CONDITION if key in c} for c in kept["conditions"]]
    trimmed = trim_child({**item, "status": kept})
    trimmed["metadata"] |= _metadata(item, ("finalizers",))
    return trimmed


def trim_pod(item: Object) -> Object:
    """Identity, what tells its template and its model, the node, what containers may use, and what the status says."""
    metadata = _metadata(item, tuple(key for key in _METADATA if key not in ("annotations", "ownerReferences")))
    annotations = item["metadata"].get("annotations") or {}
    kept = {
        name: annotations[name] for name in (TEMPLATE_HASH, CACHED_REVISION, CACHED_ADAPTERS) if name in annotations
    }
    if kept:
        metadata["annotations"] = kept
    status, spec = item.get("status") or {}, item.get("spec") or {}
    node, limits = spec.get("nodeName"), [_limits(container) for container in spec.get("containers") or []]
    return {
        "metadata": metadata,
        "spec": {"containers": limits, **({"nodeName": node} if node else {})},
        "status": {key: status[key] for key in _POD_STATUS if key in status},
    }


def _limits(container: Object) -> Object:
    return {"resources": {"limits": (container.get("resources") or {}).get("limits") or {}}}


def trim_job(item: Object) -> Object:
    """Identity, owners, and what the status says."""
    return {"metadata": _metadata(item, _METADATA), "status": item.get("status") or {}}


def trim_prefetch_pod(item: Object) -> Object:
    """What `trim_pod` keeps, which Job the pod is of, and where it can be asked how far it is."""
    trimmed = trim_pod(item)
    metadata = {**trimmed["metadata"], **_metadata(item, ("ownerReferences",))}
    address = (item.get("status") or {}).get("podIP")
    return {"metadata": metadata, "status": {**trimmed["status"], **({"podIP": address} if address else {})}}


def _metadata(item: Object, keys: tuple[str, ...]) -> dict[str, Any]:
    metadata = item["metadata"]
    return {key: metadata[key] for key in keys if key in metadata}


def _owns_replicas(item: Object) -> bool:
    return any("f:replicas" in (entry.get("fieldsV1") or {}).get("f:spec", {}) for entry in _applied(item))


def _applied_at(item: Object) -> str | None:
    return max((entry["time"] for entry in _applied(item) if "time" in entry), default=None)


def _applied(item: Object) -> list[Object]:
    """What our field manager applied, as the API server notes it."""
    return [
        entry
        for entry in item["metadata"].get("managedFields") or []
        if entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply"
    ]
