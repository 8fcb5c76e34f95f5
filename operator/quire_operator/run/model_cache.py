"""Models of hubs, read in the background: asking never waits, and what is known is given at once."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

import aiohttp

from quire_operator.kubeapi.reflector import Key
from quire_operator.plan.gpu_memory import Skipped
from quire_operator.plan.model_facts import ModelFacts
from quire_operator.sources.hub import HubError, HubModel, read_model

logger = logging.getLogger(__name__)

Token = Callable[[], Awaitable[str | None]]
"""Gets the token of a gated model; raises HubError when it cannot."""

RETRY_SECONDS = 120.0
_FRESH_SECONDS = 3600.0
_FAULTY_SECONDS = 600.0
_READS_AT_ONCE = 32
_TURN_SECONDS = 10.0
"""How long a service may be held back by hubs that answer slowly to others."""

_MOST_MODELS = 2000
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass
class _Entry:
    known: ModelFacts | Skipped | None = None
    expires: float = 0.0
    waiting: set[Key] = field(default_factory=set)
    task: asyncio.Task[None] | None = None


class ModelCache:
    """Use as an async context manager. `changed` is called with each LLMService that waited for an answer."""

    def __init__(self, changed: Callable[[Key], None]) -> None:
        self._changed = changed
        self._entries: dict[tuple[HubModel, str], _Entry] = {}
        self._down: dict[str, tuple[float, Skipped]] = {}

    async def __aenter__(self) -> Self:
        self._slots = asyncio.Semaphore(_READS_AT_ONCE)
        self._session = aiohttp.ClientSession(trust_env=True, connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(self, *error: object) -> None:
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._session.close()

    def get(self, asker: Key, model: HubModel, account: str, token: Token) -> ModelFacts | Skipped | None:
        """What is known of `model` as `account` sees it; None when it is being read for the first time.

        What has grown old is given all the same, and read again.
        """
        entry = self._entries.setdefault((model, account), _Entry())
        if entry.known is not None and time.monotonic() < entry.expires:
            return entry.known
        entry.waiting.add(asker)
        if entry.task is None:
            down = self._is_down(model)
            if down is not None and not isinstance(entry.known, ModelFacts):
                return down
            entry.task = asyncio.create_task(self._read(entry, model, token))
            self._make_room()
        return entry.known

    def _is_down(self, model: HubModel) -> Skipped | None:
        until, why = self._down.get(model.endpoint, (0.0, None))
        return why if time.monotonic() < until else None

    async def _read(self, entry: _Entry, model: HubModel, token: Token) -> None:
        try:
            self._learn(entry, model, await self._in_turn(model, token))
        except Exception:
            logger.exception("reading %s failed", model.repository)
            self._learn(entry, model, Skipped("UnknownModel", f"{model.repository} could not be read: see the log"))
        finally:
            entry.task = None
            askers, entry.waiting = entry.waiting, set()
            for asker in askers:
                self._changed(asker)

    async def _in_turn(self, model: HubModel, token: Token) -> ModelFacts | Skipped:
        try:
            async with asyncio.timeout(_TURN_SECONDS):
                await self._slots.acquire()
        except TimeoutError:
            return Skipped("HubUnreachable", f"{model.endpoint} was not asked yet: other models are being read")
        try:
            return self._is_down(model) or await self._outcome(model, token)
        finally:
            self._slots.release()

    async def _outcome(self, model: HubModel, token: Token) -> ModelFacts | Skipped:
        try:
            return await read_model(self._session, model, await token())
        except HubError as error:
            logger.warning("%s is not planned: %s", model.repository, error)
            why = Skipped(error.reason, str(error))
            if error.unreachable:
                self._down[model.endpoint] = (time.monotonic() + RETRY_SECONDS / 2, why)
            return why

    def _learn(self, entry: _Entry, model: HubModel, known: ModelFacts | Skipped) -> None:
        is_transient = isinstance(known, Skipped) and known.reason == "HubUnreachable"
        if isinstance(known, ModelFacts):
            seconds = float("inf") if _COMMIT.fullmatch(model.revision) else _FRESH_SECONDS
        else:
            seconds = RETRY_SECONDS / 2 if is_transient else _FAULTY_SECONDS
        entry.expires = time.monotonic() + seconds
        if not (is_transient and isinstance(entry.known, ModelFacts)):
            entry.known = known

    def _make_room(self) -> None:
        for key in [key for key, entry in self._entries.items() if entry.task is None]:
            if len(self._entries) <= _MOST_MODELS:
                return
            del self._entries[key]
