"""Around everything: each answer is counted, carries its request's id, and ends its connection where it has to."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire_engine.server import request_ids
from quire_engine.server.lifecycle import Lifecycle

Observe = Callable[[str, str, int, float], None]  # handler, method, status, seconds


class Front:
    """The outermost middleware."""

    def __init__(
        self, app: ASGIApp, lifecycle: Lifecycle, observe: Observe, *, root_path: str, tells_ids: bool
    ) -> None:
        """`root_path` is where a proxy has put the server; it may stand before a request's path or not."""
        self._app, self._lifecycle, self._observe = app, lifecycle, observe
        self._root_path, self._tells_ids = root_path, tells_ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 500
        scope["root_path"] = self._root_path
        request_id = request_ids.begin(Headers(scope=scope).get(request_ids.HEADER))

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                if self._tells_ids:
                    headers[request_ids.HEADER] = request_id
                if self._lifecycle.leaving:  # so that the client's next request goes to another server
                    headers["connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, send_and_look)
        finally:
            route = scope.get("route")
            handler = getattr(route, "path", "none")  # never the raw path: its values are without number
            self._observe(handler, scope["method"], status, time.monotonic() - begun)
