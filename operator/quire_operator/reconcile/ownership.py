"""Whose an object is."""

from __future__ import annotations

import enum
from typing import Any

from quire_operator.api import GROUP, KIND, LLMService
from quire_operator.builders.identity import FIELD_MANAGER, MANAGED_BY_LABEL, SERVICE_LABEL
from quire_operator.kubeapi.client import Object


class Ownership(enum.Enum):
    """What may be done with an object of a name that a child should have."""

    OURS = "may be changed"
    LEAVING = "goes on its own: it is being deleted, or belongs to an LLMService of this name that was"
    FOREIGN = "must not be touched"


def ownership(live: Object, service: LLMService) -> Ownership:
    """An orphan that bears our labels is ours: a retained claim, or what `--cascade=orphan` left."""
    controller = controller_of(live)
    if not is_own(live, service):
        if controller is None:
            return Ownership.FOREIGN
        same_name = controller.get("kind") == KIND and controller.get("name") == service.metadata.name
        predecessor = same_name and str(controller.get("apiVersion", "")).startswith(f"{GROUP}/")
        return Ownership.LEAVING if predecessor else Ownership.FOREIGN
    return Ownership.LEAVING if live["metadata"].get("deletionTimestamp") else Ownership.OURS


def is_own(live: Object, service: LLMService) -> bool:
    """Whether it is this LLMService's, be it on its way out, or an orphan that bears our labels."""
    controller = controller_of(live)
    if controller is not None:
        return bool(controller.get("uid") == service.metadata.uid)
    labels = live["metadata"].get("labels") or {}
    return labels.get(SERVICE_LABEL) == service.metadata.name and labels.get(MANAGED_BY_LABEL) == FIELD_MANAGER


def controller_of(live: Object) -> dict[str, Any] | None:
    """The owner reference that controls the object."""
    for reference in live["metadata"].get("ownerReferences") or []:
        if reference.get("controller"):
            return dict(reference)
    return None
