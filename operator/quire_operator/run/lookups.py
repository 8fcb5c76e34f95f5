"""Things of the API that are looked at now and then: asking never waits, and what is known is given at once."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from quire_operator.kubeapi.reflector import Key

T = TypeVar("T")

_MOST = 5000


@dataclass
class _Entry(Generic[T]):
    known: T | None = None
    expires: float = 0.0
    waiting: set[Key] = field(default_factory=set)
    task: asyncio.Task[None] | None = None


class Lookups(Generic[T]):
    """`changed` is called with each LLMService that asked, when there is something new."""

    def __init__(self, changed: Callable[[Key], None]) -> None:
        self._changed = changed
        self._entries: dict[Hashable, _Entry[T]] = {}

    def get(self, asker: Key, what: Hashable, read: Callable[[], Awaitable[tuple[T, float]]]) -> T | None:
        """What is known; None while it is read for the first time. `read` gives it, and for how many seconds it holds.

        What has grown old is given all the same, and read again.
        """
        entry = self._entries.setdefault(what, _Entry())
        if entry.known is None or time.monotonic() >= entry.expires:
            entry.waiting.add(asker)
            if entry.task is None:
                # without the asker's context: what is logged is about no one LLMService
                entry.task = asyncio.create_task(self._read(entry, read), context=contextvars.Context())
                self._make_room()
        return entry.known

    def known(self, what: Hashable) -> T | None:
        """What is known, however old."""
        entry = self._entries.get(what)
        return entry.known if entry is not None else None

    async def close(self) -> None:
        """End what is being read."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, entry: _Entry[T], read: Callable[[], Awaitable[tuple[T, float]]]) -> None:
        before = entry.known
        try:
            entry.known, seconds = await read()
            entry.expires = time.monotonic() + seconds
        finally:
            entry.task = None
            askers, entry.waiting = entry.waiting, set()
        if entry.known != before:
            for asker in askers:
                self._changed(asker)

    def _make_room(self) -> None:
        for key in [key for key, entry in self._entries.items() if entry.task is None]:
            if len(self._entries) <= _MOST:
                return
            del self._entries[key]
