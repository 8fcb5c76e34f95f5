"""Which optional APIs the cluster serves, asked for now and then: one may be installed, or removed, at any time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import fields

from quire_operator.builders.circumstances import Capabilities
from quire_operator.kubeapi.client import Client, Object
from quire_operator.kubeapi.errors import ApiError, UnreachableError
from quire_operator.kubeapi.resources import OPTIONAL_CHILDREN

logger = logging.getLogger(__name__)

_SECONDS = 30.0
_CUSTOM_METRICS = "custom.metrics.k8s.io"


class Discovery:
    """`changed` is called whenever an API has come or gone."""

    def __init__(self, client: Client, changed: Callable[[], None], seconds: float = _SECONDS) -> None:
        self.capabilities = Capabilities()
        self._client, self._changed, self._seconds = client, changed, seconds
        self._etag = ""
        self._known = asyncio.Event()
        self._turned = asyncio.Condition()

    async def run(self) -> None:
        """Ask for ever."""
        while True:
            try:
                answer, self._etag = await self._client.discover(self._etag)
            except (ApiError, UnreachableError) as error:
                logger.warning("the APIs that the cluster serves cannot be listed: %s", error)
            else:
                if answer is not None:
                    await self._learn(capabilities_of(answer))
            await asyncio.sleep(self._seconds if self._known.is_set() else 1.0)

    async def first(self) -> None:
        """Return once the API server has answered."""
        await self._known.wait()

    async def until(self, capability: str, *, served: bool) -> None:
        """Return once the API is served, or is no more."""
        async with self._turned:
            await self._turned.wait_for(lambda: getattr(self.capabilities, capability) == served)

    async def _learn(self, found: Capabilities) -> None:
        is_first, before = not self._known.is_set(), self.capabilities
        self._known.set()
        if found == before:
            return
        for field in fields(Capabilities):
            if getattr(found, field.name) != getattr(before, field.name):
                logger.info(
                    "the cluster %s %s", "serves" if getattr(found, field.name) else "no longer serves", field.name
                )
        async with self._turned:
            self.capabilities = found
            self._turned.notify_all()
        if not is_first:
            self._changed()


def capabilities_of(groups: Object) -> Capabilities:
    """Read an APIGroupDiscoveryList. The resources of an API whose server is away are listed as they last were."""
    served = set(_served(groups))
    found = {name: (resource.api_version, resource.plural) in served for resource, name in OPTIONAL_CHILDREN.items()}
    names = {group["metadata"]["name"] for group in groups.get("items") or []}
    return Capabilities(custom_metrics=_CUSTOM_METRICS in names, **found)


def _served(groups: Object) -> Iterator[tuple[str, str]]:
    for group in groups.get("items") or []:
        for version in group.get("versions") or []:
            for resource in version.get("resources") or []:
                yield f"{group['metadata']['name']}/{version['version']}", resource["resource"]
