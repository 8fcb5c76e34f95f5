"""Where pods may run: the user's wishes, and what the GPUs need."""

from __future__ import annotations

import copy

from quire_operator.api import LLMService
from quire_operator.builders.identity import Manifest, selector_labels

PRODUCT_LABEL = "nvidia.com/gpu.product"
COUNT_LABEL = "nvidia.com/gpu.count"


def scheduling(service: LLMService) -> Manifest:
    """The fields of a pod's spec that choose its node."""
    wishes = service.spec.scheduling
    fields: Manifest = {
        "nodeSelector": dict(wishes.node_selector),
        "tolerations": [*copy.deepcopy(wishes.tolerations), *_gpu_tolerations(service)],
        "affinity": _affinity(service),
        "topologySpreadConstraints": _spread(service),
        "priorityClassName": wishes.priority_class_name,
        "runtimeClassName": wishes.runtime_class_name,
        "schedulerName": wishes.scheduler_name,
    }
    return {name: value for name, value in fields.items() if value}


def _gpu_tolerations(service: LLMService) -> list[Manifest]:
    """GPU nodes are commonly tainted with the name of their resource, and this pod asks for it."""
    if service.spec.gpus_per_pod == 0:
        return []
    return [{"key": service.spec.resources.gpu.resource_name, "operator": "Exists", "effect": "NoSchedule"}]


def _gpu_requirements(service: LLMService) -> list[Manifest]:
    """Only with a product: without NVIDIA's feature discovery no node has these labels, and nothing would ever fit."""
    gpu, count = service.spec.resources.gpu, service.spec.gpus_per_pod
    if gpu.product is None or count == 0:
        return []
    return [
        {"key": PRODUCT_LABEL, "operator": "In", "values": [gpu.product]},
        {"key": COUNT_LABEL, "operator": "Gt", "values": [str(count - 1)]},
    ]


def _affinity(service: LLMService) -> Manifest:
    affinity = copy.deepcopy(service.spec.scheduling.affinity or {})
    requirements = _gpu_requirements(service)
    if not requirements:
        return affinity
    required = affinity.setdefault("nodeAffinity", {}).setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
    # the terms are alternatives, so each must carry what the GPUs need
    terms = required.get("nodeSelectorTerms") or [{}]
    required["nodeSelectorTerms"] = [
        {**term, "matchExpressions": [*term.get("matchExpressions", []), *requirements]} for term in terms
    ]
    return affinity


def _spread(service: LLMService) -> list[Manifest]:
    own = {"labelSelector": {"matchLabels": selector_labels(service)}}
    wishes = service.spec.scheduling.topology_spread_constraints
    if wishes:
        return [{**own, **copy.deepcopy(wish)} for wish in wishes]
    if service.spec.parallelism.nodes > 1:
        return []  # the pods of a group belong together
    return [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            **own,
            "matchLabelKeys": ["pod-template-hash"],
        }
    ]
