"""Requests that wait, by priority and then by arrival."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from quire_engine.core.request import Request


class WaitingQueue:
    """A heap by `Request.order`. A preempted request that comes back takes its old place in the line.

    A removed request stays in the heap as a dead entry until it surfaces or dead entries outnumber live ones.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Request]] = []
        self._live: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Request]:
        """The live requests in no particular order."""
        return iter(self._live.values())

    def push(self, request: Request) -> None:
        self._live[request.request_id] = request
        heapq.heappush(self._heap, (request.order, request))

    def peek(self) -> Request:
        """The first request. Raises `IndexError` when none waits."""
        while self._live.get(self._heap[0][1].request_id) is not self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][1]

    def pop(self) -> Request:
        """Take the first request out. Raises `IndexError` when none waits."""
        request = self.peek()
        heapq.heappop(self._heap)
        del self._live[request.request_id]
        return request

    def remove(self, request: Request) -> None:
        """Take out `request`, wherever it stands. Raises `KeyError` when it does not wait."""
        del self._live[request.request_id]
        if len(self._heap) > 2 * len(self._live) + 64:
            self._heap = [(r.order, r) for r in self._live.values()]
            heapq.heapify(self._heap)
