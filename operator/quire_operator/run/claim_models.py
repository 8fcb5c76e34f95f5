"""Models on claims, read by a Job that mounts the claim: a service waits for it a while, and then is served anyway."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from quire_engine.memory_plan.model_facts import ModelFacts
from quire_operator.api import ClaimSource, LLMService
from quire_operator.builders.identity import FIELD_MANAGER
from quire_operator.builders.inspection import INSPECTION_LABEL, build_inspection_job, inspection_of
from quire_operator.kubeapi.client import Client, Object
from quire_operator.kubeapi.errors import ApiError, UnreachableError
from quire_operator.kubeapi.reflector import Key, Reflector
from quire_operator.kubeapi.resources import CLAIMS, JOBS, PODS
from quire_operator.kubeapi.trimming import trim_pod
from quire_operator.plan.gpu_memory import Skipped
from quire_operator.reconcile.inspection import facts_in, progress_of
from quire_operator.run.lookups import Lookups
from quire_operator.run.model_cache import ModelCache, Reading
from quire_operator.settings import Settings

logger = logging.getLogger(__name__)

RETRY_SECONDS = 120.0
_HOLD_SECONDS = 30.0
"""How long a service is held back: enough for a pod whose image is on its node."""

_LONGEST_RETRY_SECONDS = 3600.0
_FRESH_SECONDS = 3600.0
_FAULTY_SECONDS = 600.0
_CLAIM_SECONDS = 15.0
"""For how long a claim is taken for the one that it was."""

_ABSENT_SECONDS = 1.0

_AT_ONCE = 10


class ClaimModels:
    """`changed` is called with each LLMService that waited for an answer."""

    def __init__(self, client: Client, settings: Settings, changed: Callable[[Key], None]) -> None:
        self._client, self._settings = client, settings
        self._cache = ModelCache(changed)
        self._claims: Lookups[str] = Lookups(changed)
        """The uid of each claim, empty for one that is away: one that is made anew has other models on it."""

        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._news: dict[Key, asyncio.Event] = {}
        self._late: dict[Key, tuple[int, float]] = {}
        """How often in a row a model could not be read in time, and when that is forgotten."""

        self._is_closing = False
        self._pods = [
            Reflector(client, PODS, namespace, INSPECTION_LABEL, trim_pod, self._hear)
            for namespace in settings.namespaces or (None,)
        ]

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """Endless coroutines: the watches of the pods that read."""
        return [reflector.run() for reflector in self._pods]

    def get(self, service: LLMService, source: ClaimSource) -> ModelFacts | Skipped | None:
        """What is known of the model; None while it is being read for the first time. Never waits."""
        metadata = service.metadata
        key, asker = (metadata.namespace, inspection_of(source)), (metadata.namespace, metadata.name)
        claim = (metadata.namespace, source.claim)
        uid = self._claims.get(asker, claim, lambda: self._uid(*claim))
        if uid is None:
            return None
        return self._cache.get(asker, (*key, uid), lambda: self._read(key, service, source))

    async def close(self) -> None:
        """End what is being read. Its Jobs end by themselves: the next leader may be waiting for them already."""
        self._is_closing = True
        await self._claims.close()
        await self._cache.close()

    def _hear(self, key: Key) -> None:
        if key in self._news:
            self._news[key].set()

    async def _uid(self, namespace: str, claim: str) -> tuple[str, float]:
        try:
            found = await self._client.get(CLAIMS, namespace, claim)
        except (ApiError, UnreachableError) as error:
            logger.warning("claim %s/%s cannot be read: %s", namespace, claim, error)
        except Exception:
            logger.exception("reading claim %s/%s failed", namespace, claim)
        else:
            return (str(found["metadata"]["uid"]), _CLAIM_SECONDS) if found is not None else ("", _ABSENT_SECONDS)
        return self._claims.known((namespace, claim)) or "", _CLAIM_SECONDS

    async def _read(self, key: Key, service: LLMService, source: ClaimSource) -> Reading:
        why = "other models are being read"
        try:
            async with asyncio.timeout(_HOLD_SECONDS), self._slots:
                claim = await self._client.get(CLAIMS, key[0], source.claim)
                if claim is None:
                    return Reading(Skipped("InspectionFailed", f"claim {source.claim} does not exist"), _ABSENT_SECONDS)
                phase = (claim.get("status") or {}).get("phase") or "Pending"
                if phase != "Bound":  # its first pod decides where: an engine needs a GPU there
                    return self._not_yet(key, f"claim {source.claim} is {phase}: it is read once a pod has bound it")
                why = "an earlier Job that reads it is still going"
                job = await self._job(service, source)
                try:
                    known = await self._outcome(key, job)
                finally:
                    why = progress_of(self._pods_of(key, job))
                    if not self._is_closing:
                        await asyncio.shield(self._remove(job))
        except TimeoutError:
            text = f"claim {source.claim} could not be read within {_HOLD_SECONDS:.0f} s: {why}"
            return self._not_yet(key, text)
        except (ApiError, UnreachableError) as error:
            told = error.message if isinstance(error, ApiError) else "the API server cannot be reached"
            failed = Skipped("InspectionFailed", f"claim {source.claim} cannot be read: {told}")
            return Reading(failed, RETRY_SECONDS, is_transient=True)
        self._late.pop(key, None)
        return Reading(known, _FRESH_SECONDS if isinstance(known, ModelFacts) else _FAULTY_SECONDS)

    def _not_yet(self, key: Key, text: str) -> Reading:
        now = time.monotonic()
        self._late = {late: known for late, known in self._late.items() if known[1] > now}
        attempts, _ = self._late.get(key, (0, now))
        again = min(RETRY_SECONDS * 2**attempts, _LONGEST_RETRY_SECONDS)
        self._late[key] = (attempts + 1, now + again + _LONGEST_RETRY_SECONDS)
        return Reading(Skipped("NotReadYet", text), again, is_transient=True)

    async def _job(self, service: LLMService, source: ClaimSource) -> Object:
        """The Job that reads the model: a new one, or one that an operator before this one has left at work."""
        manifest = build_inspection_job(service, source, self._settings)
        while True:
            job = await self._client.apply(JOBS, manifest, FIELD_MANAGER, force=True)
            if not job["metadata"].get("deletionTimestamp") and not _has_ended(job):
                return job
            await self._remove(job)
            await asyncio.sleep(0.5)

    async def _outcome(self, key: Key, job: Object) -> ModelFacts | Skipped:
        """What the Job's pod says in the end."""
        news = self._news.setdefault(key, asyncio.Event())
        try:
            while True:
                news.clear()
                for pod in self._pods_of(key, job):
                    known = facts_in(pod)
                    if known is not None:
                        return known
                await news.wait()
        finally:
            del self._news[key]

    def _pods_of(self, key: Key, job: Object) -> list[Object]:
        uid = job["metadata"]["uid"]
        pods = [pod for reflector in self._pods for pod in reflector.of(key)]
        return [pod for pod in pods if pod["metadata"]["labels"].get("batch.kubernetes.io/controller-uid") == uid]

    async def _remove(self, job: Object) -> None:
        metadata = job["metadata"]
        try:
            await self._client.delete(JOBS, metadata["namespace"], metadata["name"], metadata["uid"])
        except (ApiError, UnreachableError) as error:
            logger.warning("Job %s was not deleted, and ends by itself: %s", metadata["name"], error)


def _has_ended(job: Object) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in conditions)
