"""A rollout that was stopped, as the workload itself remembers it: written in one piece with what it changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quire_operator.api import GROUP
from quire_operator.builders.identity import Manifest

ANNOTATION = f"{GROUP}/stopped-rollout"
RETRY = f"{GROUP}/retry"
"""Annotation of an LLMService; a new value has a stopped rollout tried again."""


@dataclass(frozen=True)
class StoppedRollout:
    """What is served in place of what the spec asks for, and why."""

    attempt: str
    """Digest of all that was tried. Anything else is tried anew."""

    message: str
    """Reason and words of the pods that failed."""

    template: Manifest
    """The pod template that served, and does so again; empty for groups, whose own controller keeps it."""

    def annotation(self) -> str:
        """The value of the annotation."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def of(workload: Mapping[str, Any]) -> StoppedRollout | None:
        """What the workload remembers; None without, or with something that we did not write."""
        text = (workload["metadata"].get("annotations") or {}).get(ANNOTATION)
        try:
            return StoppedRollout(**json.loads(text)) if text else None
        except (ValueError, TypeError):
            return None
