"""What the pod that reads a model on a claim says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from quire_engine.memory_plan.model_facts import ModelFacts
from quire_operator.builders.inspection import INSPECTOR
from quire_operator.kubeapi.client import Object
from quire_operator.plan.gpu_memory import Skipped

_NO_CHECKPOINT = 1
"""With which `quire-engine inspect` ends when it has read what is there, and it is no model that it knows."""

_LONGEST = 500


def facts_in(pod: Object) -> ModelFacts | Skipped | None:
    """What an inspection's pod found out; None while it has not ended."""
    ended = _state(pod).get("terminated")
    if ended is None:
        if pod["status"].get("phase") == "Failed":
            return Skipped("InspectionFailed", f"its node ended the pod that reads it: {_reason(pod)}")
        return None
    message = str(ended.get("message") or "").strip()
    line = message.splitlines()[-1][:_LONGEST] if message else "no last word"
    match ended.get("exitCode"):
        case 0:
            try:
                return ModelFacts.from_json(message)
            except ValueError as error:
                return Skipped("InspectionFailed", f"the engine's image reads models in another way: {error}")
        case code if code == _NO_CHECKPOINT and ended.get("reason") != "OOMKilled":
            return Skipped("UnknownModel", line)
        case code:
            return Skipped("InspectionFailed", f"the pod that reads it ended with code {code}: {line}")


def progress_of(pods: Iterable[Object]) -> str:
    """What the first of an inspection's pods waits for."""
    for pod in pods:
        waiting = _state(pod).get("waiting") or {}
        for condition in pod["status"].get("conditions") or []:
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                return f"the pod that reads it is not scheduled: {condition.get('message', '')}"[:_LONGEST]
        text = ": ".join(str(waiting[key]) for key in ("reason", "message") if waiting.get(key))
        return f"the pod that reads it has not ended: {text or 'it runs'}"[:_LONGEST]
    return "the Job that reads it has no pod yet; its Events say why"


def _state(pod: Object) -> dict[str, Any]:
    statuses = pod["status"].get("containerStatuses") or []
    ours: dict[str, Any] = next((status for status in statuses if status.get("name") == INSPECTOR), {})
    state: dict[str, Any] = ours.get("state") or {}
    return state


def _reason(pod: Object) -> str:
    status = pod["status"]
    return ": ".join(str(status[key]) for key in ("reason", "message") if status.get(key)) or "no further word"
