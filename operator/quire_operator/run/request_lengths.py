"""How long the requests of each LLMService are, asked of the operator's own Prometheus once an hour."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

import aiohttp

from quire_operator.kubeapi.reflector import Key
from quire_operator.monitoring.request_lengths import longest_requests
from quire_operator.sources.prometheus import PrometheusError, query

logger = logging.getLogger(__name__)

_SECONDS = 3600.0
_AGAIN_SECONDS = 300.0


class RequestLengths:
    """`changed` is called with each LLMService of which something else is known than before."""

    def __init__(self, address: str, changed: Callable[[Key], None]) -> None:
        """Without an `address` nobody is asked."""
        self._address, self._changed = address, changed
        self._known: dict[Key, int] | None = None if address else {}
        self._is_out = False

    def of(self, key: Key) -> int | None:
        """Tokens of its longest request; 0 where nothing tells, None before the first answer."""
        return self._known.get(key, 0) if self._known is not None else None

    async def run(self) -> None:
        """Ask for ever, and keep what was learned while there is no answer."""
        if not self._address:
            await asyncio.Event().wait()
        async with aiohttp.ClientSession() as session:
            while True:
                was_answered = await self.ask(session)
                await asyncio.sleep(_SECONDS if was_answered else _AGAIN_SECONDS)

    async def ask(self, session: aiohttp.ClientSession) -> bool:
        """Ask once; whether there was an answer."""
        try:
            samples = await query(session, self._address, longest_requests())
        except PrometheusError as error:
            if not self._is_out:
                logger.warning("how long requests are cannot be learned of --prometheus-address: %s", error)
            self._is_out = True
            return False
        self._is_out = False
        before, found = self._known, {}
        for labels, tokens in samples:
            # series that were scraped otherwise than the pages say belong to nobody
            if "namespace" in labels and math.isfinite(tokens):
                found[labels["namespace"], labels["llmservice"]] = round(tokens)
        self._known = found
        for key in {*found, *(before or {})}:
            if before is None or found.get(key) != before.get(key):
                self._changed(key)
        return True
