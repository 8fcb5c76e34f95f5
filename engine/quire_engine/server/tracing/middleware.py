"""Around the routes: has each request traced that a model is to answer."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire_engine.server import request_ids
from quire_engine.server.tracing import facts as request_facts
from quire_engine.server.tracing.facts import Operation, RequestFacts

OPERATIONS = {
    "/v1/chat/completions": Operation("chat", "chatcmpl"),
    "/v1/responses": Operation("chat", "resp"),
    "/v1/completions": Operation("text_completion", "cmpl"),
    "/v1/embeddings": Operation("embeddings", "embd"),
    **dict.fromkeys(("/score", "/v1/score"), Operation("score", "score")),
    **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), Operation("rerank", "rerank")),
}


class Traced:
    """Gathers facts of requests and gives them to `send`, with the time at which they ended, in ns since 1970."""

    def __init__(self, app: ASGIApp, send: Callable[[RequestFacts, int], None]) -> None:
        self._app, self._send = app, send

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = _operation(scope)
        if operation is None:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        facts = RequestFacts(
            operation,
            request_ids.current_id(),
            headers.get("traceparent"),
            ",".join(headers.getlist("tracestate")),  # one list may come as several headers
        )
        request_facts.begin(facts)
        begun = time.monotonic_ns()

        async def send_and_look(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_look)
        finally:
            facts.route = getattr(scope.get("route"), "path", None)
            # By the clock that cannot be set, so that a span never ends before it begins.
            self._send(facts, facts.begun_ns + time.monotonic_ns() - begun)


def _operation(scope: Scope) -> Operation | None:
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    return OPERATIONS.get(scope["path"].removeprefix(scope["root_path"]))
