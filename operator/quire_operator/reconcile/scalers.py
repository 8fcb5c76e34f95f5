"""The scalers that are there, whether they are still wanted or not."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping

from quire_operator.api import LLMService
from quire_operator.builders.scaling import BACKENDS, SUFFIX, Obstacle
from quire_operator.kubeapi.client import Object
from quire_operator.kubeapi.resources import AUTOSCALERS, SCALED_OBJECTS
from quire_operator.reconcile.changes import ChildKey
from quire_operator.reconcile.ownership import controller_of, is_own

_PATIENCE = datetime.timedelta(seconds=30)
"""In which KEDA's operator, where there is one, lets go of what is deleted."""

_FREE = '{"metadata":{"finalizers":null}}'


def leaving_scalers(service: LLMService, children: Mapping[ChildKey, Object]) -> list[ChildKey]:
    """Scalers that the spec does not ask for any more. Until they are gone, they may still set replicas."""
    scaling = service.spec.autoscaling
    wanted = scaling.backend if scaling is not None and not service.spec.suspend else None
    return [key for backend, key in _scalers(service, children) if backend != wanted]


def stuck_scaler(service: LLMService, children: Mapping[ChildKey, Object], now: str) -> Obstacle | None:
    """A scaler that is being deleted and does not go. The service is not held up for it longer."""
    latest = datetime.datetime.fromisoformat(now) - _PATIENCE
    for _, (kind, name) in _scalers(service, children):
        metadata = children[kind, name]["metadata"]
        since = metadata.get("deletionTimestamp")
        if since is None or datetime.datetime.fromisoformat(since) > latest:
            continue
        finalizers = ", ".join(metadata.get("finalizers") or []) or "none"
        remove = f"kubectl patch {kind.lower()}/{name} -n {service.metadata.namespace} --type=merge -p '{_FREE}'"
        text = (
            f"{kind} {name} was deleted at {since} and is still there, for its finalizers ({finalizers}): see that "
            f"KEDA's operator runs, which takes them away, or do so by `{remove}`"
        )
        return Obstacle("ScalerLeaving", text)
    return None


def scaler_of(service: LLMService, children: Mapping[ChildKey, Object]) -> Object | None:
    """What we made to scale the service: the ScaledObject or the HorizontalPodAutoscaler."""
    scaling = service.spec.autoscaling
    name = f"{service.metadata.name}-{SUFFIX}"
    return children.get((BACKENDS[scaling.backend], name)) if scaling is not None else None


def autoscaler_of(service: LLMService, children: Mapping[ChildKey, Object]) -> Object | None:
    """The HorizontalPodAutoscaler that does the work, which may be one that KEDA made."""
    scaling = service.spec.autoscaling
    found = (
        children[key]
        for backend, key in _scalers(service, children)
        if key[0] == AUTOSCALERS.kind and scaling is not None and backend == scaling.backend
    )
    return next(found, None)


def _scalers(service: LLMService, children: Mapping[ChildKey, Object]) -> Iterator[tuple[str, ChildKey]]:
    """Scalers with their backend. What KEDA makes for a ScaledObject bears its labels, and so is among the children."""
    for key, live in children.items():
        controller = controller_of(live) or {}
        is_ours = is_own(live, service)
        scaled_object = (controller.get("kind"), controller.get("name"))
        match key[0]:
            case SCALED_OBJECTS.kind if is_ours:
                yield "keda", key
            case AUTOSCALERS.kind if is_ours:
                yield "hpa", key
            case AUTOSCALERS.kind if scaled_object == (SCALED_OBJECTS.kind, f"{service.metadata.name}-{SUFFIX}"):
                yield "keda", key
