"""Kubernetes Events: for each transition of a condition, and for what no condition tells."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from typing import Any

from quire_operator.api import API_VERSION, KIND, CacheStatus, Condition, LLMService, Status
from quire_operator.builders.identity import FIELD_MANAGER
from quire_operator.plan.acceptance import objection_of
from quire_operator.reconcile.hand_edits import HandEdit
from quire_operator.reconcile.prefetching import gib

_PASSING = {
    *("Planning", "Downloading", "Starting", "RollingOut", "Recreating", "Scaling", "Suspended", "Waiting"),
    *("ScalerPending", "Paused"),
}
"""Reasons for not being ready that are nobody's fault."""


_SUMMARIZED = {"Accepted", "Available", "Reconciling", "Stalled"}
"""Conditions of which Ready tells."""


def transition_events(
    service: LLMService, before: Iterable[Condition], after: Iterable[Condition], now: str
) -> list[dict[str, Any]]:
    """An Event for each condition whose status or reason changed; one for those that say the same."""
    old = {condition.type: (condition.status, condition.reason) for condition in before}
    told = [condition for condition in after if condition.type not in _SUMMARIZED]
    changed = [c for c in told if old.get(c.type) != (c.status, c.reason) and not _goes_with_load(old.get(c.type), c)]
    said = {(c.reason, c.message): c for c in reversed(changed)}
    return [_transition(service, c, now) for c in changed if said[c.reason, c.message] is c]


def _goes_with_load(before: tuple[str, str] | None, after: Condition) -> bool:
    """Whether it only tells what scaling does as it should, many times a day."""
    return after.type == "Autoscaling" and after.status == "True" and before is not None and before[0] == "True"


def _transition(service: LLMService, condition: Condition, now: str) -> dict[str, Any]:
    is_fine = condition.status == "True" or condition.reason in _PASSING
    return _event(service, "Normal" if is_fine else "Warning", condition.reason, condition.message, now)


def plan_events(service: LLMService, status: Status, now: str) -> list[dict[str, Any]]:
    """The Event that tells of a model that is tried though its plan speaks against it."""
    objection = objection_of(status.plan)
    if objection is None:
        return []
    return [_event(service, "Warning", objection.reason, f"{objection.message}. It is tried all the same", now)]


def advice_events(service: LLMService, before: Status, after: Status, now: str) -> list[dict[str, Any]]:
    """An Event for each advice that is new."""
    told = {advice.reason for advice in before.advice}
    new = [advice for advice in after.advice if advice.reason not in told]
    return [_event(service, "Warning", advice.reason, advice.message, now) for advice in new]


def download_event(service: LLMService, status: Status, now: str) -> dict[str, Any] | None:
    """The Event that tells of another quarter of a download; None in between."""
    before, after = _quarters(service.status.cache), _quarters(status.cache)
    if after is None or after <= (before or 0) or status.cache is None:
        return None
    told = f"{gib(status.cache.bytes or 0)} of {gib(status.cache.total_bytes or 0)}"
    message = f"{told} of {status.cache.model} are on claim {status.cache.claim_name}"
    return _event(service, "Normal", "Downloading", message, now)


def loss_event(service: LLMService, loss: str, now: str) -> dict[str, Any]:
    """The Event that tells why a model is downloaded again that had been downloaded."""
    return _event(service, "Warning", "DownloadedAgain", f"{loss}: it is downloaded again", now)


def _quarters(cache: CacheStatus | None) -> int | None:
    if cache is None or cache.phase != "Downloading" or cache.bytes is None or not cache.total_bytes:
        return None
    return 4 * cache.bytes // cache.total_bytes


def hand_edit_event(service: LLMService, edit: HandEdit, now: str) -> dict[str, Any]:
    """The Event that tells who undid it: by `kubectl rollout undo`, for one, nothing is rolled back for long."""
    message = (
        f"somebody else changed {edit.field} of {edit.kind} {edit.name}, and it is put back: change the LLMService "
        "instead, or apply its former version"
    )
    return _event(service, "Warning", "HandEditUndone", message, now)


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
