"""The Jobs that download models and their pods, kept up to date by list+watch; how far they are, by asking them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import aiohttp

from quire_operator.builders.cached_model import Download
from quire_operator.builders.identity import PREFETCH_LABEL
from quire_operator.builders.prefetch_job import PROGRESS_PORT
from quire_operator.kubeapi.client import Client, Object
from quire_operator.kubeapi.reflector import Key, Reflector
from quire_operator.kubeapi.resources import JOBS, PODS
from quire_operator.kubeapi.trimming import trim_job, trim_prefetch_pod
from quire_operator.reconcile.kept_revisions import model_of
from quire_operator.reconcile.prefetching import Progress, Seen

_POLL_SECONDS = 10.0
_PATIENCE = aiohttp.ClientTimeout(total=3)

_LONGEST_ANSWER = 4096

_Owners = dict[str, Key]
"""LLMServices by their uid."""


class Downloads:
    """What the reconcile looks at; `changed` is called with each LLMService that waits for what has changed."""

    def __init__(self, client: Client, namespaces: tuple[str, ...], changed: Callable[[Key], None]) -> None:
        self._changed = changed
        scopes = namespaces or (None,)
        self._jobs = [Reflector(client, JOBS, scope, PREFETCH_LABEL, trim_job, self._job_changed) for scope in scopes]
        self._pods = [Reflector(client, PODS, scope, PREFETCH_LABEL, trim_prefetch_pod, self._wake) for scope in scopes]
        self._owners: dict[Key, _Owners] = {}
        """Who waits for the download of this namespace and key."""

        self._owned: dict[str, set[Key]] = {}
        """The same the other way round."""

        self._brings: dict[Key, tuple[str, str | None]] = {}
        """Repository of each download, and the commit where that is known."""

        self._progress: dict[Key, Progress] = {}

    def seen(self, download: Download) -> Seen:
        """What is there of one download."""
        key = (download.namespace, download.key)
        job = next((job for job in self._of(self._jobs, key) if job["metadata"]["name"] == download.job_name), None)
        # those of a Job of this name that was deleted may still be there
        pods = [pod for pod in self._of(self._pods, key) if job is not None and _is_of(pod, job)]
        return Seen(job, pods, self._progress.get(key))

    def owned_by(self, uid: str) -> list[Object]:
        """The Jobs that have this LLMService as an owner."""
        return [job for key in sorted(self._owned.get(uid, ())) for job in self._of(self._jobs, key)]

    def commits_of(self, namespace: str, repository: str) -> set[str]:
        """Commits of a model that Jobs of the namespace bring, or have brought."""
        brought = (model for key, model in self._brings.items() if key[0] == namespace)
        return {commit for name, commit in brought if name == repository and commit is not None}

    def learn(self, job: Object) -> None:
        """Take in the answer to a write of our own, ahead of its event."""
        for reflector in self._jobs:
            if reflector.covers(job):
                reflector.learn(job)
                self._index((job["metadata"]["namespace"], job["metadata"]["labels"][PREFETCH_LABEL]))

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """Endless coroutines."""
        return [*(reflector.run() for reflector in (*self._jobs, *self._pods)), self._ask_for_ever()]

    async def listed(self) -> None:
        """Return once everything has been listed."""
        await asyncio.gather(*(reflector.listed.wait() for reflector in (*self._jobs, *self._pods)))

    def silence(self) -> float:
        """Seconds since the quietest watch last showed a sign of life."""
        return time.monotonic() - min(reflector.alive_at for reflector in (*self._jobs, *self._pods))

    def _of(self, reflectors: Iterable[Reflector], key: Key) -> list[Object]:
        return [item for reflector in reflectors for item in reflector.of(key)]

    def _job_changed(self, key: Key) -> None:
        before = self._owners.get(key, {})
        self._index(key)
        for service in {*before.values(), *self._owners.get(key, {}).values()}:
            self._changed(service)

    def _wake(self, key: Key) -> None:
        for service in self._owners.get(key, {}).values():
            self._changed(service)

    def _index(self, key: Key) -> None:
        before = self._owners.pop(key, {})
        now = {
            owner["uid"]: (key[0], owner["name"])
            for job in self._of(self._jobs, key)
            for owner in job["metadata"].get("ownerReferences") or []
        }
        self._note_model(key)
        if now:
            self._owners[key] = now
        else:
            self._progress.pop(key, None)
        for uid in before.keys() - now.keys():
            self._owned[uid].discard(key)
            if not self._owned[uid]:
                del self._owned[uid]
        for uid in now:
            self._owned.setdefault(uid, set()).add(key)

    def _note_model(self, key: Key) -> None:
        """Who waits for another commit of a model looks whether its Job would remove the one that is new here."""
        before = self._brings.pop(key, None)
        for job in self._of(self._jobs, key):
            self._brings[key] = now = model_of(job)
            if now != before and now[1] is not None:
                for other, (repository, _) in self._brings.items():
                    if other != key and other[0] == key[0] and repository == now[0]:
                        self._wake(other)

    async def _ask_for_ever(self) -> None:
        async with aiohttp.ClientSession(timeout=_PATIENCE) as session:
            while True:
                await asyncio.sleep(_POLL_SECONDS)
                await asyncio.gather(*(self._ask(session, *asked) for asked in self._running()))

    def _running(self) -> list[tuple[Key, str]]:
        """Downloads under way, and the address of the pod that is at it."""
        return [
            (key, pod["status"]["podIP"])
            for key in list(self._owners)
            for pod in self._of(self._pods, key)
            if pod["status"].get("phase") == "Running" and "podIP" in pod["status"]
        ]

    async def _ask(self, session: aiohttp.ClientSession, key: Key, address: str) -> None:
        host = f"[{address}]" if ":" in address else address
        # whoever cannot be reached, behind a network policy for one, is only not told of
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
            url = f"http://{host}:{PROGRESS_PORT}/progress"
            async with session.get(url, allow_redirects=False) as response:
                found = json.loads(await response.content.read(_LONGEST_ANSWER))
            total = found["total"]
            progress = Progress(int(found["bytes"]), int(total) if total is not None else None)
            if progress != self._progress.get(key):
                self._progress[key] = progress
                self._wake(key)


def _is_of(pod: Object, job: Object) -> bool:
    return any(owner.get("uid") == job["metadata"]["uid"] for owner in pod["metadata"].get("ownerReferences") or [])
