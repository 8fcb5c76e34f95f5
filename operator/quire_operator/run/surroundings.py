"""The children and pods of all LLMServices, kept up to date by one list+watch for each kind and namespace."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any

from quire_operator.builders.circumstances import Capabilities
from quire_operator.builders.identity import SERVICE_LABEL
from quire_operator.kubeapi.client import Client, Object
from quire_operator.kubeapi.reflector import Key, Reflector
from quire_operator.kubeapi.resources import AUTOSCALERS, CHILDREN, OPTIONAL_CHILDREN, PODS, SCALED_OBJECTS, WATCHED
from quire_operator.kubeapi.trimming import trim_child, trim_pod, trim_scaler
from quire_operator.reconcile.changes import ChildKey
from quire_operator.run.discovery import Discovery

_CHILD_KINDS = {resource.kind for resource in (*CHILDREN, *OPTIONAL_CHILDREN)}
_TRIMS = {PODS: trim_pod, SCALED_OBJECTS: trim_scaler, AUTOSCALERS: trim_scaler}
_OPTIONAL_SECONDS = 15.0
"""How long an optional API may take to be listed before services are reconciled without it."""


class Surroundings:
    """What the reconcile looks at; `changed` is called with the LLMService whose child or pod changed."""

    def __init__(
        self, client: Client, namespaces: tuple[str, ...], changed: Callable[[Key], None], discovery: Discovery
    ) -> None:
        self._discovery = discovery
        self._reflectors = [
            Reflector(
                client,
                resource,
                namespace,
                SERVICE_LABEL,
                _TRIMS.get(resource, trim_child),
                changed,
                may_be_forbidden=resource in OPTIONAL_CHILDREN,
            )
            for resource in (*WATCHED, *OPTIONAL_CHILDREN)
            for namespace in namespaces or (None,)
        ]

    @property
    def capabilities(self) -> Capabilities:
        """Which optional APIs the cluster serves."""
        return self._discovery.capabilities

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
        """Endless coroutines: one for each watch, and one that asks which there are."""
        watches = [self._while_served(reflector) for reflector in self._reflectors]
        return [self._discovery.run(), *watches]

    async def listed(self) -> None:
        """Return once everything that the cluster serves has been listed."""
        await self._discovery.first()
        await asyncio.gather(*(r.listed.wait() for r in self._reflectors if r.resource not in OPTIONAL_CHILDREN))
        optional = [r.listed.wait() for r in self._reflectors if r.resource in OPTIONAL_CHILDREN and self._is_served(r)]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_OPTIONAL_SECONDS):
                await asyncio.gather(*optional)

    def silence(self) -> float:
        """Seconds since the quietest watch last showed a sign of life; a retry counts as one."""
        return time.monotonic() - min(r.alive_at for r in self._reflectors if self._is_served(r))

    def _is_served(self, reflector: Reflector) -> bool:
        capability = OPTIONAL_CHILDREN.get(reflector.resource)
        return capability is None or bool(getattr(self.capabilities, capability))

    async def _while_served(self, reflector: Reflector) -> None:
        capability = OPTIONAL_CHILDREN.get(reflector.resource)
        if capability is None:
            await reflector.run()
            return
        while True:
            await self._discovery.until(capability, served=True)
            reflector.alive_at = time.monotonic()
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(reflector.run())
                await self._discovery.until(capability, served=False)
                watching.cancel()
            reflector.clear()
