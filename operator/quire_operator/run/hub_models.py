"""Models of hubs: a hub that is away is asked once in a while, and not for each model."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Self

import aiohttp

from quire_engine.memory_plan.model_facts import ModelFacts
from quire_operator.builders.cached_model import is_commit
from quire_operator.kubeapi.reflector import Key
from quire_operator.plan.gpu_memory import Skipped
from quire_operator.run.model_cache import ModelCache, Reading
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


class HubModels:
    """Use as an async context manager. `changed` is called with each LLMService that waited for an answer."""

    def __init__(self, changed: Callable[[Key], None]) -> None:
        self._cache = ModelCache(changed)
        self._down: dict[str, tuple[float, Skipped]] = {}

    async def __aenter__(self) -> Self:
        self._slots = asyncio.Semaphore(_READS_AT_ONCE)
        self._session = aiohttp.ClientSession(trust_env=True, connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._cache.close()
        await self._session.close()

    def get(self, asker: Key, model: HubModel, account: str, token: Token) -> ModelFacts | Skipped | None:
        """What is known of `model` as `account` sees it; None when it is being read for the first time."""
        return self._cache.get(asker, (model, account), lambda: self._read(model, token), self._is_down(model))

    def _is_down(self, model: HubModel) -> Skipped | None:
        until, why = self._down.get(model.endpoint, (0.0, None))
        return why if time.monotonic() < until else None

    async def _read(self, model: HubModel, token: Token) -> Reading:
        known = await self._in_turn(model, token)
        if isinstance(known, ModelFacts):
            return Reading(known, float("inf") if is_commit(model.revision) else _FRESH_SECONDS)
        if known.reason == "HubUnreachable":
            return Reading(known, RETRY_SECONDS / 2, is_transient=True)
        return Reading(known, _FAULTY_SECONDS)

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
                self._down = {hub: known for hub, known in self._down.items() if known[0] > time.monotonic()}
                self._down[model.endpoint] = (time.monotonic() + RETRY_SECONDS / 2, why)
            return why
