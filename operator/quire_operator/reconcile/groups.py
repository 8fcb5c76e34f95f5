"""The pods of a LeaderWorkerSet by their groups, each of which serves as a whole or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from quire_operator.api import LLMService
from quire_operator.builders.identity import COMPONENT_LABEL
from quire_operator.kubeapi.client import Object
from quire_operator.kubeapi.trimming import APPLIED_AT
from quire_operator.reconcile.faults import Fault, is_ready, template_hash
from quire_operator.reconcile.workloads import condition

GROUP_LABEL = "leaderworkerset.sigs.k8s.io/name"
INDEX_LABEL = "leaderworkerset.sigs.k8s.io/group-index"


def leaders_of(groups: Object, pods: Sequence[Object]) -> list[Object]:
    """The first pod of each group, but for those that leave."""
    name = groups["metadata"]["name"]
    return [pod for pod in pods if _leads(pod, name) and not pod["metadata"].get("deletionTimestamp")]


def serving_leaders(leaders: Sequence[Object], pods: Sequence[Object], size: int) -> list[Object]:
    """The leaders that are ready, and with them `size` pods in all of their group.

    LeaderWorkerSet 0.8 takes workers for ready as soon as they exist, also while they wait for a node.
    """
    ready = Counter(_kin(pod) for pod in pods if is_ready(pod) and not pod["metadata"].get("deletionTimestamp"))
    return [leader for leader in leaders if is_ready(leader) and ready[_kin(leader)] >= size]


def last_progress(groups: Object, pods: Sequence[Object]) -> float:
    """When groups last came closer to what is asked for, in seconds since the epoch.

    That is our last change of them, the moment at which LeaderWorkerSet began to make more of them or to make lost ones
    anew, or that at which a leader was ready. Of pods that fail nothing is left: their group is made anew.
    """
    began = condition(groups, "Progressing")
    # a worker is ready as soon as it runs, and so in each group that fails
    leaders = [pod for pod in pods if is_ready(pod) and _component(pod) == "engine"]
    moments = [groups.get(APPLIED_AT), began.get("lastTransitionTime")]
    moments += [condition(leader, "Ready").get("lastTransitionTime") for leader in leaders]
    return max((datetime.fromisoformat(moment).timestamp() for moment in moments if moment), default=float("inf"))


def as_group(service: LLMService, pods: Sequence[Object], fault: Fault) -> Fault:
    """The fault of a pod that finds no node, with what its whole group needs and has."""
    index = next((_index(pod) for pod in pods if pod["metadata"]["name"] == fault.pod), None)
    if index is None:
        return fault
    size, gpu = service.spec.parallelism.nodes, service.spec.resources.gpu.resource_name
    each, nodes = service.spec.gpus_per_pod, sorted(_nodes(pods, index))
    needs = f"group {index} serves with all its {size} pods" + (f" of {each} {gpu}" if each else "")
    has = f"{len(nodes)} of them on {', '.join(nodes)}" if nodes else "none of which has a node"
    held = f", where {each * len(nodes)} {gpu} wait for the rest" if nodes and each else ""
    return replace(fault, message=f"{needs}, {has}{held}: {fault.message}")


def _nodes(pods: Sequence[Object], index: str) -> list[str]:
    """Of each pod of the group that has one and does not leave it."""
    there = [pod for pod in pods if _index(pod) == index and not pod["metadata"].get("deletionTimestamp")]
    return [pod["spec"]["nodeName"] for pod in there if (pod.get("spec") or {}).get("nodeName")]


def _kin(pod: Object) -> tuple[str | None, str | None]:
    return _index(pod), template_hash(pod)


def _leads(pod: Object, groups: str) -> bool:
    labels = pod["metadata"].get("labels") or {}
    return labels.get(GROUP_LABEL) == groups and labels.get(COMPONENT_LABEL) == "engine"


def _component(pod: Object) -> str | None:
    found: str | None = (pod["metadata"].get("labels") or {}).get(COMPONENT_LABEL)
    return found


def _index(pod: Object) -> str | None:
    found: str | None = (pod["metadata"].get("labels") or {}).get(INDEX_LABEL)
    return found
