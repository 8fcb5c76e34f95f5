"""Watching LLMServices: kopf brings each change, and a list now and then catches what no watch told of."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import kopf

from quire_operator.api import GROUP, PLURAL, VERSION
from quire_operator.kubeapi.client import Client
from quire_operator.kubeapi.errors import ApiError, UnreachableError
from quire_operator.kubeapi.login import login
from quire_operator.kubeapi.reflector import Key
from quire_operator.kubeapi.resources import LLMSERVICES
from quire_operator.run.services import ServiceStore

logger = logging.getLogger(__name__)

_RELIST_SECONDS = 600.0
_GRACE_SECONDS = 30.0


class _Backoffs:
    """kopf gives up, and the process with it, when its delays run out; these do not."""

    def __iter__(self) -> Iterator[float]:
        yield from (0.5, 1.0)
        while True:
            yield 2.0


@contextlib.contextmanager
def _signals_left_alone() -> Iterator[None]:
    """Without kopf's handlers: a signal would end kopf alone, after seconds, or by an error where it still starts."""
    of_loop = vars(asyncio.get_running_loop())
    of_loop["add_signal_handler"] = lambda *_: None
    try:
        yield
    finally:
        del of_loop["add_signal_handler"]


class ServiceWatch:
    """Fills the store, and calls `changed` with each LLMService that came, changed or went."""

    def __init__(
        self, client: Client, namespaces: tuple[str, ...], store: ServiceStore, changed: Callable[[Key], None]
    ) -> None:
        self._client, self._namespaces, self._store, self._changed = client, namespaces, store, changed
        self._heard: dict[Key, str] = {}
        self.is_deaf = False
        """kopf's watch has missed a change that a list showed: only a new process helps."""

    async def list(self) -> dict[Key, str]:
        """Compare everything there is with what is known. Returns what was new, with its version."""
        fresh: dict[Key, str] = {}
        listed: set[Key] = set()
        for namespace in self._namespaces or (None,):
            answer = await self._client.list(LLMSERVICES, namespace)
            for item in answer.get("items") or []:
                key = (item["metadata"]["namespace"], item["metadata"]["name"])
                listed.add(key)
                item = {"apiVersion": LLMSERVICES.api_version, "kind": LLMSERVICES.kind, **item}
                if self._store.learn(item):
                    fresh[key] = item["metadata"]["resourceVersion"]
                    self._changed(key)
            version = str(answer["metadata"]["resourceVersion"])
            for key in self._store:
                # a deletion during an outage of the API server is never told of
                if key not in listed and namespace in (None, key[0]):
                    self._store.forget(key, version)
                    self._changed(key)
        return fresh

    async def relist(self) -> None:
        """List again every ten minutes, for ever."""
        while True:
            await asyncio.sleep(_RELIST_SECONDS)
            try:
                missed = await self.list()
                await asyncio.sleep(_GRACE_SECONDS)
            except (ApiError, UnreachableError) as error:
                logger.warning("LLMServices could not be listed: %s", error)
                continue
            unheard = [
                key for key, version in missed.items() if key in self._store and not self._heard_of(key, version)
            ]
            if unheard:
                logger.error("the watch of LLMServices has missed changes of %s", unheard[:5])
                self.is_deaf = True

    async def run(self, stop: asyncio.Event, ready: asyncio.Event) -> None:
        """kopf, until `stop`. It adds no finalizer and no annotation, and posts no Events."""
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        def authenticate(**_: object) -> kopf.ConnectionInfo:
            return login()

        @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
        async def heard(event: Any, **_: object) -> None:
            self._hear(event["type"], event["object"])

        settings = kopf.OperatorSettings()
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.peering.standalone = True
        settings.networking.error_backoffs = _Backoffs()
        with _signals_left_alone():
            await kopf.operator(
                registry=registry,
                settings=settings,
                clusterwide=not self._namespaces,
                namespaces=self._namespaces,
                stop_flag=stop,
                ready_flag=ready,
            )

    def _hear(self, kind: str | None, item: dict[str, Any]) -> None:
        metadata = item["metadata"]
        key = (metadata["namespace"], metadata["name"])
        if kind == "DELETED":
            self._heard.pop(key, None)
            self._store.forget(key, metadata["resourceVersion"])
        else:
            self._heard[key] = metadata["resourceVersion"]
            self._store.learn(dict(item))
        # even when the answer to a write of ours brought this state already: nobody may have looked at it yet
        self._changed(key)

    def _heard_of(self, key: Key, version: str) -> bool:
        heard = self._heard.get(key)
        return heard is not None and (int(heard) >= int(version) if heard.isdecimal() else heard == version)
