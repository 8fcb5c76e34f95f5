"""A list+watch that keeps a local copy of one kind of object and says which ones changed."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import Any

from quire_operator import metrics
from quire_operator.kubeapi.client import Client, Object
from quire_operator.kubeapi.errors import ApiError, UnreachableError
from quire_operator.kubeapi.resources import Resource

logger = logging.getLogger(__name__)

Key = tuple[str, str]
"""Namespace and name."""

_EXPIRED_SECONDS = 1.0
"""Before what is too old for a watch is listed anew: an API server that calls everything too old is not flooded."""

_LONGEST_BACKOFF_SECONDS = 10.0
_FORBIDDEN_SECONDS = 240.0
"""How long a refusal is taken for an answer: rights come with an installation, and seldom in between."""


class Reflector:
    """Objects of `resource` with a label, each trimmed to what is needed, grouped by the label's value.

    `changed` is called with (namespace, label's value) whenever an object came, changed or went. Every list is
    compared with what was held, so a deletion during an outage is noticed too.

    What `may_be_forbidden` is empty where RBAC keeps it from us.
    """

    def __init__(
        self,
        client: Client,
        resource: Resource,
        namespace: str | None,
        label: str,
        trim: Callable[[Object], Object],
        changed: Callable[[Key], None],
        *,
        may_be_forbidden: bool = False,
    ) -> None:
        self.resource = resource
        self.listed = asyncio.Event()
        self.alive_at = time.monotonic()
        self._client, self._namespace, self._label, self._trim, self._changed = client, namespace, label, trim, changed
        self._may_be_forbidden, self._is_forbidden = may_be_forbidden, False
        self._objects: dict[Key, Object] = {}
        self._groups: dict[Key, dict[Key, Object]] = {}

    def of(self, owner: Key) -> Iterable[Object]:
        """The objects whose label names `owner`."""
        return self._groups.get(owner, {}).values()

    def covers(self, item: Object) -> bool:
        """Whether `item` is of a namespace that is watched here."""
        return self._namespace in (None, item["metadata"]["namespace"])

    def learn(self, item: Object) -> None:
        """Take in the answer to a write of our own, ahead of its event."""
        self._put(item, silently=True)

    def clear(self) -> None:
        """Forget everything: the API itself is gone."""
        for key in list(self._objects):
            self._remove(key)

    async def run(self) -> None:
        """List, watch, and again, for ever."""
        backoff = 0.0
        while True:
            self.alive_at = time.monotonic()
            try:
                version = await self._list()
                backoff, self._is_forbidden = 0.0, False
                while True:
                    version = await self._watch(version)
            except ApiError as error:
                if error.status == 410:
                    await asyncio.sleep(random.uniform(0, _EXPIRED_SECONDS))
                    continue
                if error.status == 403 and self._may_be_forbidden:
                    self._take_as_empty(error)
                    await asyncio.sleep(_FORBIDDEN_SECONDS * random.uniform(0.5, 1.0))
                    continue
                logger.warning("watching %s: %s", self.resource.plural, error)
            except UnreachableError as error:
                logger.warning("watching %s: %s", self.resource.plural, error)
            metrics.watch_restarts.labels(self.resource.plural).inc()
            backoff = min(_LONGEST_BACKOFF_SECONDS, backoff * 2 or 0.5)
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))

    def _take_as_empty(self, error: ApiError) -> None:
        if not self._is_forbidden:
            logger.warning("%s are taken as absent, since RBAC does not allow them: %s", self.resource.plural, error)
        self._is_forbidden = True
        self.clear()
        self.listed.set()

    async def _list(self) -> str:
        result = await self._client.list(self.resource, self._namespace, self._label)
        fresh = {_key(item): item for item in result.get("items") or []}
        for key in [key for key in self._objects if key not in fresh]:
            self._remove(key)
        for item in fresh.values():
            self._put(item)
        self.listed.set()
        return str(result["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> str:
        async for event in self._client.watch(self.resource, self._namespace, version, self._label):
            self.alive_at = time.monotonic()
            item: Object = event["object"]
            kind: str = event["type"]
            if kind == "ERROR":
                raise ApiError(int(item.get("code") or 500), item, f"watch of {self.resource.plural}")
            version = item["metadata"]["resourceVersion"]
            if kind == "DELETED":
                held = self._objects.get(_key(item))
                if held is not None and not is_newer(held, item):  # a successor of that name may be here already
                    self._remove(_key(item))
            elif kind != "BOOKMARK":
                self._put(item)
        self.alive_at = time.monotonic()
        return version

    def _put(self, item: Object, *, silently: bool = False) -> None:
        key = _key(item)
        before = self._objects.get(key)
        if before is not None:
            if not is_newer(item, before):
                return
            if self._owner(before) != self._owner(item):
                self._remove(key)
        trimmed = self._trim(item)
        is_news = before is None or not _is_same(before, trimmed)
        self._objects[key] = trimmed
        owner = self._owner(item)
        self._groups.setdefault(owner, {})[key] = trimmed
        if is_news and not silently:
            self._changed(owner)

    def _remove(self, key: Key) -> None:
        item = self._objects.pop(key, None)
        if item is None:
            return
        owner = self._owner(item)
        group = self._groups[owner]
        del group[key]
        if not group:
            del self._groups[owner]
        self._changed(owner)

    def _owner(self, item: Object) -> Key:
        metadata: dict[str, Any] = item["metadata"]
        return metadata["namespace"], metadata["labels"][self._label]


def is_newer(item: Object, other: Object) -> bool:
    """Whether `item` is a later state than `other`. Where versions cannot be compared, what differs is newer."""
    new, old = item["metadata"]["resourceVersion"], other["metadata"]["resourceVersion"]
    return int(new) > int(old) if new.isdecimal() and old.isdecimal() else bool(new != old)


def _is_same(item: Object, other: Object) -> bool:
    """Whether both say the same, whatever their versions: what changed was trimmed away."""
    version = other["metadata"]["resourceVersion"]
    return {**item, "metadata": {**item["metadata"], "resourceVersion": version}} == other


def _key(item: Object) -> Key:
    return item["metadata"]["namespace"], item["metadata"]["name"]
