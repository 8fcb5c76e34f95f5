"""How many replicas there are: pods of a Deployment, or groups of pods of a LeaderWorkerSet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from quire_operator.api import LLMService
from quire_operator.kubeapi.client import Object
from quire_operator.reconcile.changes import ChildKey
from quire_operator.reconcile.faults import template_hash
from quire_operator.reconcile.groups import leaders_of, serving_leaders
from quire_operator.reconcile.workloads import (
    REVISION,
    condition,
    predecessor,
    template_of,
    workload_key,
)


@dataclass(frozen=True)
class Replicas:
    """Counts of the workload, and of the one that it takes the place of."""

    wanted: int
    existing: int
    ready: int
    available: int
    updated: int
    is_current: bool
    """The counts are those of the newest template."""

    rolled_out: bool
    """All wanted replicas are of the newest template and serve, and no older one is left."""

    older: int = 0
    """Replicas of an older template, or of the workload before. One that starts anew is none."""

    recreating: bool = False
    """A rollout by strategy Recreate is on its way: older replicas go before newer ones start."""


def count_replicas(service: LLMService, children: Mapping[ChildKey, Object], pods: Sequence[Object] = ()) -> Replicas:
    """Counts; all zero but the wanted number before the workload exists."""
    before = predecessor(service, children)
    counts = _count(service, children.get(workload_key(service)), before, pods)
    if before is None:
        return counts
    old = _count(service, before, None, pods)
    return replace(
        counts,
        existing=counts.existing + old.existing,
        ready=counts.ready + old.ready,
        available=counts.available + old.available,
        older=counts.older + old.existing,
        rolled_out=False,
    )


def has_rolled_out(service: LLMService, children: Mapping[ChildKey, Object], pods: Sequence[Object]) -> bool:
    """Whether all replicas of the workload that is asked for serve, whatever is left of the one before."""
    return _count(service, children.get(workload_key(service)), None, pods).rolled_out


def _count(service: LLMService, workload: Object | None, before: Object | None, pods: Sequence[Object]) -> Replicas:
    if workload is None:
        return Replicas(_first_replicas(service, before), 0, 0, 0, 0, False, False)
    return _of_groups(workload, pods) if "leaderWorkerTemplate" in workload["spec"] else _of_deployment(workload)


def _first_replicas(service: LLMService, before: Object | None) -> int:
    if service.spec.replicas is not None:
        return service.spec.replicas
    if before is not None:
        return int(before["spec"].get("replicas", 1))
    return service.spec.autoscaling.first_replicas if service.spec.autoscaling is not None else 1


def _of_deployment(deployment: Object) -> Replicas:
    spec, status = deployment["spec"], deployment.get("status") or {}
    wanted = spec.get("replicas", 1)
    existing, updated = status.get("replicas", 0), status.get("updatedReplicas", 0)
    available = status.get("availableReplicas", 0)
    is_current = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
    return Replicas(
        wanted=wanted,
        existing=existing,
        ready=status.get("readyReplicas", 0),
        available=available,
        updated=updated,
        is_current=is_current,
        rolled_out=is_current and existing == updated == available == wanted,
        older=max(0, existing - updated),
        recreating=_is_recreating(deployment, settled=is_current and existing == updated),
    )


def _of_groups(groups: Object, pods: Sequence[Object]) -> Replicas:
    """Its status does not say which generation it is of, so that only the leaders themselves tell new from old."""
    spec, status = groups["spec"], groups.get("status") or {}
    leaders = leaders_of(groups, pods)
    newest = template_hash(template_of(groups))
    wanted, existing, size = (
        spec.get("replicas", 1),
        status.get("replicas", 0),
        spec["leaderWorkerTemplate"].get("size", 1),
    )
    updated = sum(template_hash(pod) == newest for pod in leaders)
    ready = len(serving_leaders(leaders, pods, size))
    return Replicas(
        wanted=wanted,
        existing=existing,
        ready=ready,
        available=ready,
        updated=updated,
        is_current=updated == len(leaders),
        rolled_out=existing == updated == len(leaders) == ready == wanted,
        older=len(leaders) - updated,
    )


def _is_recreating(deployment: Object, *, settled: bool) -> bool:
    """A first rollout stops nothing, and scaling up from zero is none at all."""
    if (deployment["spec"].get("strategy") or {}).get("type") != "Recreate":
        return False
    is_first = (deployment["metadata"].get("annotations") or {}).get(REVISION, "1") == "1"
    is_done = settled and condition(deployment, "Progressing").get("reason") == "NewReplicaSetAvailable"
    return not is_first and not is_done
