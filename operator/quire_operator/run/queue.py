"""A queue of LLMServices to reconcile: each at most once in it, and never in two workers at once."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from collections import deque

from quire_operator import metrics
from quire_operator.kubeapi.reflector import Key

_FIRST_BACKOFF_SECONDS = 0.25
_LONGEST_BACKOFF_SECONDS = 60.0


class WorkQueue:
    """`add` from anywhere in the event loop; workers call `take`, then `done`."""

    def __init__(self) -> None:
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._order = itertools.count()
        self._running: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._idle: deque[asyncio.Future[None]] = deque()

    def add(self, key: Key, after: float = 0.0) -> None:
        """Have `key` reconciled, `after` seconds from now at the latest."""
        due = time.monotonic() + after
        if self._due.get(key, float("inf")) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._order), key))
        self._changed()

    async def take(self) -> Key:
        """The next key that is due. One that is being reconciled waits until that is done."""
        while True:
            key, wait = self._next()
            if key is not None:
                self._running[key] = time.monotonic()
                self._changed()  # there may be more, for another worker
                return key
            waiter = asyncio.get_running_loop().create_future()
            self._idle.append(waiter)
            try:
                await asyncio.wait_for(waiter, wait)
            except TimeoutError:
                continue
            finally:
                if waiter in self._idle:
                    self._idle.remove(waiter)

    def done(self, key: Key) -> None:
        """The reconcile of `key` succeeded."""
        self._failures.pop(key, None)
        self._end(key)

    def failed(self, key: Key, *, at_least: float = 0.0, at_once: bool = False) -> float:
        """The reconcile of `key` failed. Puts it off, for longer each time, and returns by how many seconds."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        backoff = min(_LONGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2 ** min(count, 16))
        # without jitter, what failed together would come back together
        delay = 0.0 if at_once and count == 0 else max(at_least, backoff * random.uniform(0.5, 1.0))
        metrics.queue_retries.inc()
        self._end(key)
        self.add(key, delay)
        return delay

    def longest_run(self) -> float:
        """Seconds for which the slowest running reconcile has been at it."""
        return max((time.monotonic() - begun for begun in self._running.values()), default=0.0)

    def longest_overdue(self) -> float:
        """Seconds for which the most patient key has waited though it was due."""
        return max((time.monotonic() - due for due in self._due.values()), default=0.0)

    def count(self) -> None:
        """Set the gauges of what is due and what is running."""
        now = time.monotonic()
        metrics.queue_depth.set(sum(due <= now for due in self._due.values()))
        metrics.queue_running.set(len(self._running))

    def _next(self) -> tuple[Key | None, float | None]:
        """A key to run now, else how long to wait for one."""
        blocked: list[tuple[float, int, Key]] = []
        found: Key | None = None
        wait: float | None = None
        now = time.monotonic()
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) != due:
                heapq.heappop(self._heap)  # replaced by an earlier entry, or done
                continue
            if due > now:
                wait = due - now
                break
            entry = heapq.heappop(self._heap)
            if key in self._running:
                blocked.append(entry)
                continue
            found = key
            del self._due[key]
            break
        for entry in blocked:
            heapq.heappush(self._heap, entry)
        return found, wait

    def _end(self, key: Key) -> None:
        self._running.pop(key, None)
        self._changed()

    def _changed(self) -> None:
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
