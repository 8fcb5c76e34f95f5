"""Edits of pod templates by others, told from edits of the LLMService."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quire_operator.builders.identity import APPLIED_HASH, Manifest
from quire_operator.kubeapi.reflector import Key
from quire_operator.reconcile.changes import Apply, Change
from quire_operator.reconcile.difference import first_difference

_TEMPLATES = {"Deployment": "template", "LeaderWorkerSet": "leaderWorkerTemplate"}
"""Kinds of workload, and the field of `spec` that holds their pods."""


@dataclass(frozen=True)
class HandEdit:
    """What somebody else changed, and the next apply puts back."""

    kind: str
    name: str
    field: str


class HandEdits:
    """Remembers which workloads were seen as they are wanted. After a restart, an edit may go untold."""

    def __init__(self) -> None:
        self._in_place: dict[Key, str] = {}

    def find(self, key: Key, desired: Iterable[Manifest], todo: Sequence[Change]) -> HandEdit | None:
        """The edit of a template that was in place already, and that the LLMService does not ask to have otherwise."""
        for manifest in desired:
            if manifest["kind"] not in _TEMPLATES:
                continue
            digest = manifest["metadata"]["annotations"][APPLIED_HASH]
            change = next((c for c in todo if isinstance(c, Apply) and c.manifest is manifest), None)
            if change is None:
                self._in_place[key] = digest
            elif change.live is not None and self._in_place.get(key) == digest:
                part = _TEMPLATES[manifest["kind"]]
                field = first_difference(manifest["spec"][part], change.live["spec"][part])
                if field is not None:
                    del self._in_place[key]  # told once, though the apply may take several attempts
                    return HandEdit(manifest["kind"], manifest["metadata"]["name"], f"spec.{part}.{field}")
        return None

    def forget(self, key: Key) -> None:
        """The LLMService is gone."""
        self._in_place.pop(key, None)
