"""The children and pods of all LLMServices, kept up to date by one list+watch for each kind and namespace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from quire_operator.builders.identity import SERVICE_LABEL
from quire_operator.kubeapi.client import Client, Object
from quire_operator.kubeapi.reflector import Key, Reflector
from quire_operator.kubeapi.resources import CHILDREN, PODS, WATCHED
from quire_operator.kubeapi.trimming import trim_child, trim_pod
from quire_operator.reconcile.changes import ChildKey

_CHILD_KINDS = {resource.kind for resource in CHILDREN}


class Surroundings:
    """What the reconcile looks at; `changed` is called with the LLMService whose child or pod changed."""

    def __init__(self, client: Client, namespaces: tuple[str, ...], changed: Callable[[Key], None]) -> None:
        self._reflectors = [
            Reflector(client, resource, namespace, SERVICE_LABEL, trim_pod if resource == PODS else trim_child, changed)
            for resource in WATCHED
            for namespace in namespaces or (None,)
        ]

    def children(self, key: Key) -> dict[ChildKey, Object]:
        """Objects of the kinds that we apply, by kind and name."""
        return {
            (reflector.resource.kind, item["metadata"]["name"]): item
            for reflector in self._reflectors
            if reflector.resource.kind in _CHILD_KINDS
            for item in reflector.of(key)
        }

    def pods(self, key: Key) -> list[Object]:
        """The pods of one LLMService."""
        return [item for reflector in self._reflectors if reflector.resource == PODS for item in reflector.of(key)]

    def learn(self, kind: str, item: Object) -> None:
        """Take in the answer to an apply, ahead of its event."""
        for reflector in self._reflectors:
            if reflector.resource.kind == kind and reflector.covers(item):
                reflector.learn(item)

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """One endless coroutine for each watch."""
        return [reflector.run() for reflector in self._reflectors]

    async def listed(self) -> None:
        """Return once everything has been listed."""
        await asyncio.gather(*(reflector.listed.wait() for reflector in self._reflectors))

    def silence(self) -> float:
        """Seconds since the quietest watch last showed a sign of life; a retry counts as one."""
        return time.monotonic() - min(reflector.alive_at for reflector in self._reflectors)
