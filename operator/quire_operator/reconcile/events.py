"""Kubernetes Events, one for each transition of the Ready condition, and for a plan that is not heeded."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from typing import Any

from quire_operator.api import API_VERSION, KIND, Condition, LLMService, Status
from quire_operator.builders.identity import FIELD_MANAGER

_PASSING = {"Starting", "RollingOut", "Scaling", "Suspended", "Waiting"}
"""Reasons for not being ready that are nobody's fault."""


def transition_event(
    service: LLMService, before: Iterable[Condition], after: Iterable[Condition], now: str
) -> dict[str, Any] | None:
    """The Event that tells of a change of Ready's status or reason; None when there was none."""
    old, new = _ready(before), _ready(after)
    if new is None or (old is not None and (old.status, old.reason) == (new.status, new.reason)):
        return None
    is_fine = new.status == "True" or new.reason in _PASSING
    return _event(service, "Normal" if is_fine else "Warning", new.reason, new.message, now)


def plan_event(service: LLMService, status: Status, now: str) -> dict[str, Any]:
    """The Event that tells of a model that is tried though it does not fit."""
    plan = status.plan
    message = f"{plan.message}. It is tried all the same" if plan is not None else ""
    return _event(service, "Warning", "DoesNotFit", message, now)


def _event(service: LLMService, kind: str, reason: str, message: str, now: str) -> dict[str, Any]:
    reference = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": service.metadata.name,
        "namespace": service.metadata.namespace,
        "uid": service.metadata.uid,
    }
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{service.metadata.name}.{secrets.token_hex(8)}",
            "namespace": service.metadata.namespace,
        },
        "involvedObject": reference,
        "type": kind,
        "reason": reason,
        "message": message[:1024],
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": FIELD_MANAGER,
        "reportingInstance": os.environ.get("HOSTNAME", FIELD_MANAGER),
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def _ready(conditions: Iterable[Condition]) -> Condition | None:
    return next((condition for condition in conditions if condition.type == "Ready"), None)
