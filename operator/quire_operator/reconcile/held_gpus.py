"""The GPUs that pods hold or ask for, as they stand in the pods: what the spec asks for may be of no pod yet."""

from __future__ import annotations

from collections.abc import Iterable

from quire_operator.api import LLMService
from quire_operator.kubeapi.client import Object

_ENDED = ("Succeeded", "Failed")


def held_gpus(service: LLMService, pods: Iterable[Object]) -> int:
    """Of all pods that are there, those of an older revision and those that are about to go among them."""
    resource = service.spec.resources.gpu.resource_name
    return sum(_of_pod(pod, resource) for pod in pods if pod["status"].get("phase") not in _ENDED)


def _of_pod(pod: Object, resource: str) -> int:
    limits: dict[str, str] = {}
    for container in (pod.get("spec") or {}).get("containers") or []:
        limits |= (container.get("resources") or {}).get("limits") or {}
    if resource in limits:
        return int(limits[resource])
    # pods of before may have another of the vendor's resources, such as slices of a GPU
    vendor = f"{resource.partition('/')[0]}/"
    return sum(int(amount) for name, amount in limits.items() if name.startswith(vendor))
