"""Requests that wait for their grammar, and take no part in scheduling before."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from quire_engine.core.grammar import BusyError, PendingGrammar
from quire_engine.core.messages import ErrorKind
from quire_engine.core.request import Request

log = logging.getLogger(__name__)


class GrammarQueue:
    """What is compiled elsewhere, by request."""

    def __init__(self) -> None:
        self._pending: dict[str, tuple[Request, PendingGrammar]] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._pending

    def __iter__(self) -> Iterator[str]:
        return iter(self._pending)

    def add(self, request: Request, pending: PendingGrammar) -> None:
        self._pending[request.request_id] = (request, pending)

    def remove(self, request_id: str) -> None:
        """Raises `KeyError` where the request does not wait here."""
        _, pending = self._pending.pop(request_id)
        pending.leave()

    def wait(self, seconds: float) -> None:
        """Sleep until the first of them may be ready, at most so long."""
        if self._pending:
            next(iter(self._pending.values()))[1].wait(seconds)

    def take_ready(self) -> tuple[list[Request], dict[str, tuple[str, ErrorKind]]]:
        """The requests whose grammar is there now, with it, and by its id what is wrong with each other's."""
        ready: list[Request] = []
        wrong: dict[str, tuple[str, ErrorKind]] = {}
        for request, pending in [entry for entry in self._pending.values() if entry[1].done()]:
            del self._pending[request.request_id]
            try:
                request.grammar = pending.start()
                ready.append(request)
            except ValueError as error:
                wrong[request.request_id] = str(error), "busy" if isinstance(error, BusyError) else "invalid"
            except Exception as error:
                # Whatever is wrong with one grammar, the others go on.
                log.exception("the grammar of request %s could not be prepared", request.request_id)
                wrong[request.request_id] = f"structured_outputs: {type(error).__name__}: {error}", "fault"
        return ready, wrong
