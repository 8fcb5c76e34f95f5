"""Facts of models, read in the background: asking never waits, and what is known is given at once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field

from quire_engine.memory_plan.model_facts import ModelFacts
from quire_operator.kubeapi.reflector import Key
from quire_operator.plan.gpu_memory import Skipped

logger = logging.getLogger(__name__)

_FAULTY_SECONDS = 600.0
_MOST_MODELS = 2000


@dataclass(frozen=True)
class Reading:
    """What came of an attempt to read a model."""

    known: ModelFacts | Skipped
    fresh_seconds: float
    """For how long it need not be read again."""

    is_transient: bool = False
    """It says nothing about the model, so that what was learned before stays."""


Read = Callable[[], Awaitable[Reading]]


@dataclass
class _Entry:
    known: ModelFacts | Skipped | None = None
    expires: float = 0.0
    waiting: set[Key] = field(default_factory=set)
    task: asyncio.Task[None] | None = None


class ModelCache:
    """`changed` is called with each LLMService that waited for an answer."""

    def __init__(self, changed: Callable[[Key], None]) -> None:
        self._changed = changed
        self._entries: dict[Hashable, _Entry] = {}

    def get(
        self, asker: Key, model: Hashable, read: Read, instead: Skipped | None = None
    ) -> ModelFacts | Skipped | None:
        """What is known of `model`; None when it is being read for the first time, by `read`.

        What has grown old is given all the same, and read again. With `instead`, a model that is not known is not
        read, and that is the answer.
        """
        entry = self._entries.setdefault(model, _Entry())
        if entry.known is not None and time.monotonic() < entry.expires:
            return entry.known
        entry.waiting.add(asker)
        if entry.task is None:
            if instead is not None and not isinstance(entry.known, ModelFacts):
                return instead
            entry.task = asyncio.create_task(self._read(entry, model, read))
            self._make_room()
        return entry.known

    async def close(self) -> None:
        """End what is being read."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, entry: _Entry, model: Hashable, read: Read) -> None:
        try:
            reading = await read()
        except Exception:
            logger.exception("reading %s failed", model)
            reading = Reading(Skipped("UnknownModel", "the model could not be read: see the log"), _FAULTY_SECONDS)
        finally:
            entry.task = None
        entry.expires = time.monotonic() + reading.fresh_seconds
        if not (reading.is_transient and isinstance(entry.known, ModelFacts)):
            entry.known = reading.known
        askers, entry.waiting = entry.waiting, set()
        for asker in askers:
            self._changed(asker)

    def _make_room(self) -> None:
        for key in [key for key, entry in self._entries.items() if entry.task is None]:
            if len(self._entries) <= _MOST_MODELS:
                return
            del self._entries[key]
