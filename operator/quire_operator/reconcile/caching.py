"""The part of a reconcile that sees to the cache: what is on its claim, and the Jobs that bring the rest."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from quire_operator.api import LLMService
from quire_operator.builders.cached_model import Download, downloads_of, is_commit
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.identity import CACHED_ADAPTERS, CACHED_REVISION
from quire_operator.builders.prefetch_job import build_prefetch_job
from quire_operator.kubeapi.client import Client, Object
from quire_operator.kubeapi.reflector import Key
from quire_operator.reconcile.cache_state import CacheState
from quire_operator.reconcile.changes import ChildKey
from quire_operator.reconcile.conditions import Verdict
from quire_operator.reconcile.environment import AGAIN_SECONDS, missing_claims
from quire_operator.reconcile.faults import Fault, template_hash
from quire_operator.reconcile.kept_revisions import overlooked
from quire_operator.reconcile.lost_models import loss_of
from quire_operator.reconcile.observation import Observation, claim_message
from quire_operator.reconcile.planning import Planned
from quire_operator.reconcile.prefetch_jobs import JobChange, carry_out_job_changes, departures, job_changes
from quire_operator.reconcile.prefetching import DownloadState, Seen, download_state, gib
from quire_operator.reconcile.workloads import template_of

HELD_BACK = ("Deployment", "LeaderWorkerSet", "ScaledObject", "HorizontalPodAutoscaler")
"""Children that stay as they are until the model is on the claim: pods, and what makes more of them."""

_COMMITS = ("revision", "commit")
"""Where the spec and the status of an adapter have one."""


class Downloads(Protocol):
    """The Jobs that download models, as last seen."""

    def seen(self, download: Download) -> Seen:
        """What is there of one download."""

    def owned_by(self, uid: str) -> list[Object]:
        """The Jobs that have this LLMService as an owner."""

    def commits_of(self, namespace: str, repository: str) -> set[str]:
        """Commits of a model that Jobs of the namespace bring, or have brought."""

    def learn(self, job: Object) -> None:
        """Take in the answer to a write."""


class Services(Protocol):
    """What is served beside a service."""

    def objects(self) -> list[Object]:
        """All LLMServices."""


class Surroundings(Protocol):
    """What became of it."""

    def children(self, key: Key) -> Mapping[ChildKey, Object]:
        """Children of one LLMService."""

    def pods(self, key: Key) -> list[Object]:
        """Its pods."""


class Caching:
    """Looks at the downloads that a service waits for, and sees that there is one of each."""

    def __init__(self, client: Client, downloads: Downloads, services: Services, surroundings: Surroundings) -> None:
        self._client, self._downloads = client, downloads
        self._services, self._surroundings = services, surroundings

    def look(self, service: LLMService, planned: Planned, observation: Observation) -> CacheState | None:
        """The cache as it is; None for a service whose pods see to their weights themselves."""
        downloads = downloads_of(service, planned.commit)
        if not downloads:
            return None
        return CacheState(
            {name: self._state(service, name, download, observation) for name, download in downloads.items()}
        )

    def todo(
        self, service: LLMService, planned: Planned, circumstances: Circumstances, observation: Observation
    ) -> list[JobChange]:
        """What to do about Jobs, in order; nothing at steady state."""
        downloads = {download.key: download for download in downloads_of(service, planned.commit).values()}.values()
        if downloads and planned.is_from_status:
            return []  # which commit is wanted is known again in a moment
        missing = missing_claims(observation.environment)
        if any(download.claim in missing for download in downloads):
            return []
        todo = departures(service, downloads, self._downloads.owned_by(service.metadata.uid))
        for download in downloads:
            todo += self._job_changes(service, download, circumstances, observation)
        return todo

    async def carry_out(
        self, todo: Iterable[JobChange], service: LLMService, planned: Planned, observation: Observation
    ) -> CacheState | None:
        """Do it, and look again. Raises as `carry_out` of the children does."""
        outcome = await carry_out_job_changes(self._client, todo)
        for job in outcome.jobs:
            self._downloads.learn(job)
        state, problem = self.look(service, planned, observation), outcome.problem
        if state is None or problem is None:
            return state
        return replace(state, problem=Fault(problem.reason, problem.message, True))

    def _state(
        self, service: LLMService, adapter: str | None, download: Download, observation: Observation
    ) -> DownloadState:
        seen = self._downloads.seen(download)
        loss = _loss(service, download, seen, observation)
        state = download_state(service, download, seen, time.time(), loss, adapter)
        if seen.job is None and download.claim in missing_claims(observation.environment):
            return replace(state, fault=_claim_missing(download), retry_after=AGAIN_SECONDS)
        if state.fault is None:
            return state
        text = state.fault.message
        if state.fault.reason == "ClaimPending":
            text = claim_message(service, observation, text)
        return replace(state, fault=replace(state.fault, message=f"adapter {adapter}: {text}" if adapter else text))

    def _job_changes(
        self, service: LLMService, download: Download, circumstances: Circumstances, observation: Observation
    ) -> list[JobChange]:
        seen = self._downloads.seen(download)
        brought = self._downloads.commits_of(download.namespace, download.repository)

        def make(attempt: int, again: str | None) -> Object:
            claim = observation.environment.claim
            return build_prefetch_job(
                service,
                download,
                circumstances,
                keep=(self._in_use(service.metadata.namespace) | brought) - {download.revision},
                attempt=attempt,
                again=again,
                beside_pods=claim is not None and claim.is_of_one_node,
            )

        loss, unkept = _loss(service, download, seen, observation), overlooked(download, seen, brought)
        return job_changes(service, seen, make, time.time(), loss, unkept)

    def _in_use(self, namespace: str) -> set[str]:
        """Commits that a service of the namespace serves, or is about to: more than those of one model do no harm."""
        found: set[Any] = set()
        for item in self._services.objects():
            metadata = item["metadata"]
            if metadata["namespace"] != namespace:
                continue
            status = item.get("status") or {}
            found.add((status.get("cache") or {}).get("commit"))
            found.add((status.get("model") or {}).get("revision"))
            model = (item.get("spec") or {}).get("model") or {}
            adapters = [*(model.get("adapters") or []), *((status.get("cache") or {}).get("adapters") or [])]
            found |= {model.get("revision"), *(adapter.get(key) for adapter in adapters for key in _COMMITS)}
            key = (namespace, metadata["name"])
            templates = [template_of(child) for child in self._surroundings.children(key).values()]
            # one that leaves has read its model, and would keep it on the claim until the next download
            pods = [pod for pod in self._surroundings.pods(key) if not pod["metadata"].get("deletionTimestamp")]
            for serving in (*templates, *pods):
                annotations = (serving.get("metadata") or {}).get("annotations") or {}
                found |= {annotations.get(CACHED_REVISION), *annotations.get(CACHED_ADAPTERS, "").split(",")}
        return {revision for revision in found if isinstance(revision, str) and is_commit(revision)}


def _loss(service: LLMService, download: Download, seen: Seen, observation: Observation) -> str | None:
    workload = observation.workload(service)
    newest = template_hash(template_of(workload)) if workload is not None else None
    return loss_of(download, seen, observation.claim_made(service), observation.pods, newest)


def _claim_missing(download: Download) -> Fault:
    text = f"claim {download.claim} does not exist in namespace {download.namespace}"
    return Fault("ClaimNotFound", f"{text}: create it, or correct spec.cache.claimName", True)


def judge_cache(service: LLMService, observation: Observation) -> Verdict | None:
    """ModelCached: whether the model and the adapters that the spec asks for are on the claim."""
    state = observation.cache
    if state is None:
        return None
    if state.fault is not None:
        return Verdict("ModelCached", False, state.fault.reason, state.fault.message)
    size = f" ({gib(state.bytes)})" if state.bytes is not None else ""
    return Verdict("ModelCached", True, "Cached", f"{state}{size}")
