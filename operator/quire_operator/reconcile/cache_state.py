"""The cache of one service: what it waits for, and what its pods can load meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quire_operator.api import CacheStatus, LLMService
from quire_operator.api.status import CachedAdapter
from quire_operator.builders.cached_model import adapter_source, hub_adapters, is_commit, model_name
from quire_operator.reconcile.faults import Fault
from quire_operator.reconcile.prefetching import DownloadState, Phase

_WORST_FIRST: tuple[Phase, ...] = ("Failed", "Downloading", "Pending", "Ready")
_PROBLEM_SECONDS = 30.0


@dataclass(frozen=True)
class CacheState:
    """What is there of everything that the service's pods load from the claim."""

    parts: Mapping[str | None, DownloadState]
    """At least one: adapters by name, the model under None."""

    problem: Fault | None = None
    """Why nothing can be done about it."""

    @property
    def claim(self) -> str:
        """The claim, which all have in common."""
        return next(iter(self.parts.values())).download.claim

    @property
    def phase(self) -> Phase:
        """How far all are together."""
        return next(phase for phase in _WORST_FIRST if any(part.phase == phase for part in self.parts.values()))

    @property
    def is_held(self) -> bool:
        """Pods of the present spec would not find everything on the claim."""
        return any(part.cached_revision is None for part in self.parts.values())

    @property
    def cached_revision(self) -> str | None:
        """What pods can load of the model as of now; None when there is nothing."""
        model = self.parts.get(None)
        return model.cached_revision if model is not None else None

    @property
    def cached_adapters(self) -> Mapping[str, str]:
        """The same of adapters, those that are there."""
        return {
            name: part.cached_revision
            for name, part in self.parts.items()
            if name is not None and part.cached_revision is not None
        }

    @property
    def commit(self) -> str | None:
        """The commit of the model that pods load; None where only a branch is known."""
        revision = self.cached_revision
        return revision if revision is not None and is_commit(revision) else None

    @property
    def fault(self) -> Fault | None:
        """Why what is wanted is not there; None once it is. What needs somebody to act comes first."""
        faults = [part.fault for part in self.parts.values() if part.fault is not None]
        return self.problem or next((fault for fault in faults if fault.needs_action), faults[0] if faults else None)

    @property
    def retry_after(self) -> float | None:
        """Seconds after which to look again though nothing was heard."""
        again = [part.retry_after for part in self.parts.values() if part.retry_after is not None]
        return min([*again, *([_PROBLEM_SECONDS] if self.problem is not None else [])], default=None)

    @property
    def bytes(self) -> int | None:
        """Bytes that are there, of what says so."""
        known = [part.bytes for part in self.parts.values() if part.bytes is not None]
        return sum(known) if known else None

    @property
    def total(self) -> int | None:
        """Bytes of everything; None while one of them is not known."""
        known = [part.total for part in self.parts.values() if part.total is not None]
        return sum(known) if len(known) == len(self.parts) else None

    def status(self, service: LLMService) -> CacheStatus:
        """As it is reported."""
        there = self.cached_adapters
        adapters = [
            CachedAdapter(name=adapter.name, source=adapter_source(adapter), commit=there[adapter.name])
            for adapter, _ in hub_adapters(service)
            if is_commit(there.get(adapter.name, ""))
        ]
        return CacheStatus(
            phase=self.phase,
            claim_name=self.claim,
            model=model_name(service),
            commit=self.commit,
            adapters=adapters or None,
            bytes=self.bytes,
            total_bytes=self.total,
        )

    def __str__(self) -> str:
        """What is where, in words for people."""
        names = [
            f"{part.download.repository} at {part.cached_revision}"
            if name is None
            else f"adapter {name} ({part.download.repository} at {part.cached_revision})"
            for name, part in self.parts.items()
        ]
        return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} on claim {self.claim}"
