"""Requests that wait, by priority and then by arrival."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator

from quire_engine.core.request import Request


class _Line:
    """A heap by `Request.order`.

    A removed request stays in the heap as a dead entry until it surfaces or dead entries outnumber live ones.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Request]] = []
        self.live: dict[str, Request] = {}

    def push(self, request: Request) -> None:
        self.live[request.request_id] = request
        heapq.heappush(self._heap, (request.order, request))

    def first(self) -> Request | None:
        while self._heap and self.live.get(self._heap[0][1].request_id) is not self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def remove(self, request: Request) -> None:
        del self.live[request.request_id]
        if len(self._heap) > 2 * len(self.live) + 64:
            self._heap = [(r.order, r) for r in self.live.values()]
            heapq.heapify(self._heap)


class WaitingQueue:
    """Two lines, of requests with an adapter and of those without. A preempted request takes its old place again."""

    def __init__(self) -> None:
        self._plain, self._adapted = _Line(), _Line()
        self.adapters: Counter[int] = Counter()  # by number: the requests that wait for each

    def __len__(self) -> int:
        return len(self._plain.live) + len(self._adapted.live)

    def __iter__(self) -> Iterator[Request]:
        """The live requests in no particular order."""
        yield from self._plain.live.values()
        yield from self._adapted.live.values()

    def push(self, request: Request) -> None:
        self._line(request).push(request)
        if request.adapter:
            self.adapters[request.adapter] += 1

    def first_without_adapter(self) -> Request | None:
        return self._plain.first()

    def first_with_adapter(self) -> Request | None:
        return self._adapted.first()

    def peek(self) -> Request:
        """The first request. Raises `IndexError` when none waits."""
        firsts = [r for r in (self._plain.first(), self._adapted.first()) if r is not None]
        if not firsts:
            raise IndexError("no request waits")
        return min(firsts, key=lambda request: request.order)

    def remove(self, request: Request) -> None:
        """Take out `request`, wherever it stands. Raises `KeyError` when it does not wait."""
        self._line(request).remove(request)
        if request.adapter:
            self.adapters[request.adapter] -= 1
            if not self.adapters[request.adapter]:
                del self.adapters[request.adapter]

    def _line(self, request: Request) -> _Line:
        return self._adapted if request.adapter else self._plain
