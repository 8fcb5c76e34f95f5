"""Requests that wait for their grammar or their images, and take no part in scheduling before."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from quire_engine.core.grammar import PendingGrammar
from quire_engine.core.messages import ErrorKind
from quire_engine.core.refusal import kind_of
from quire_engine.core.request import Request

log = logging.getLogger(__name__)


class PreparationQueue:
    """What is compiled and prepared elsewhere, by request."""

    def __init__(self) -> None:
        self._pending: dict[str, tuple[Request, PendingGrammar | None]] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._pending

    def __iter__(self) -> Iterator[str]:
        return iter(self._pending)

    def add(self, request: Request, grammar: PendingGrammar | None) -> None:
        """Have a request wait for `grammar`, and for its images where it has pending ones."""
        self._pending[request.request_id] = (request, grammar)

    def remove(self, request_id: str) -> None:
        """Raises `KeyError` where the request does not wait here. Its images are its own to leave."""
        _, grammar = self._pending.pop(request_id)
        if grammar is not None:
            grammar.leave()

    def wait(self, seconds: float) -> None:
        """Sleep until the first of them may be ready, at most so long."""
        if not self._pending:
            return
        request, grammar = next(iter(self._pending.values()))
        if grammar is not None and not grammar.done():
            grammar.wait(seconds)
        elif request.pending_images is not None:
            request.pending_images.wait(seconds)

    def take_ready(self) -> tuple[list[Request], dict[str, tuple[str, ErrorKind]]]:
        """The requests that have everything now, and by its id what is wrong with each other's."""
        ready: list[Request] = []
        wrong: dict[str, tuple[str, ErrorKind]] = {}
        for request, grammar in [entry for entry in self._pending.values() if _done(*entry)]:
            del self._pending[request.request_id]
            what = "structured_outputs"
            try:
                if grammar is not None:
                    request.grammar = grammar.start()
                what = "images"
                if request.pending_images is not None:
                    request.pending_images.check()
                ready.append(request)
            except ValueError as error:
                wrong[request.request_id] = str(error), kind_of(error)
            except Exception as error:
                # Whatever is wrong with one request, the others go on.
                log.exception("%s of request %s could not be prepared", what, request.request_id)
                wrong[request.request_id] = f"{what}: {type(error).__name__}: {error}", "fault"
        return ready, wrong


def _done(request: Request, grammar: PendingGrammar | None) -> bool:
    images = request.pending_images
    return (grammar is None or grammar.done()) and (images is None or images.done())
