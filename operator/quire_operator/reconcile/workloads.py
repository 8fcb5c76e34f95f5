"""The object that runs the engines, and the one of the other kind whose place it takes when a replica's pods change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire_operator.api import LLMService, Spec
from quire_operator.builders.circumstances import Capabilities
from quire_operator.builders.workload import workload_reference
from quire_operator.kubeapi.client import Object
from quire_operator.kubeapi.resources import DEPLOYMENTS, LEADER_WORKER_SETS
from quire_operator.plan.acceptance import Refusal
from quire_operator.reconcile.changes import ChildKey
from quire_operator.reconcile.ownership import controller_of

REVISION = "deployment.kubernetes.io/revision"
"""Annotation by which the Deployment's controller counts templates."""

_KINDS = (DEPLOYMENTS.kind, LEADER_WORKER_SETS.kind)


def workload_key(service: LLMService) -> ChildKey:
    """Of the workload that the spec asks for."""
    reference = workload_reference(service)
    return reference["kind"], reference["name"]


def predecessor_key(service: LLMService, children: Mapping[ChildKey, Object]) -> ChildKey | None:
    """Of a workload of the other kind, that is there still."""
    for key, live in children.items():
        ours = (controller_of(live) or {}).get("uid") == service.metadata.uid
        if key[0] in _KINDS and key != workload_key(service) and ours and not live["metadata"].get("deletionTimestamp"):
            return key
    return None


def predecessor(service: LLMService, children: Mapping[ChildKey, Object]) -> Object | None:
    """What the key is of."""
    key = predecessor_key(service, children)
    return children[key] if key is not None else None


def template_of(child: Object) -> Mapping[str, Any]:
    """The template of the pods that serve; empty for what is no workload."""
    spec = child.get("spec") or {}
    found: Mapping[str, Any] = (
        (spec.get("leaderWorkerTemplate") or {}).get("leaderTemplate") or spec.get("template") or {}
    )
    return found


def condition(item: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The condition of this type that the object's controller tells; empty when it does not."""
    for found in (item.get("status") or {}).get("conditions") or []:
        if found.get("type") == kind:
            return dict(found)
    return {}


def missing_api(spec: Spec, capabilities: Capabilities) -> Refusal | None:
    """Why the cluster cannot run what the spec asks for."""
    nodes = spec.parallelism.nodes
    if nodes == 1 or capabilities.leader_worker_sets:
        return None
    text = (
        f"spec.parallelism.nodes is {nodes}, and the cluster does not serve LeaderWorkerSet, which keeps the pods of a "
        "replica together: install it from https://lws.sigs.k8s.io, or write 1"
    )
    return Refusal("LeaderWorkerSetMissing", text)
