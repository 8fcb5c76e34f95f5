"""The middleware in front of every route: who may come in, who is counted, and how connections end."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire_engine.server.errors import ApiError
from quire_engine.server.lifecycle import Lifecycle, State

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/", "/health", "/ping", "/metrics", "/version", "/load"})
RETRY_SECONDS = "5"
# A prompt of a million tokens, spelled as text or ids, fits.
MAX_BODY_BYTES = 32 * 2**20
TOO_LARGE = f"the body is larger than {MAX_BODY_BYTES} bytes, the most that is read: send less in one request"
Observe = Callable[[str, str, int, float], None]  # handler, method, status, seconds


class Gate:
    """Admits API requests while the server serves, with a valid key; counts them until their answer has ended."""

    def __init__(
        self,
        app: ASGIApp,
        lifecycle: Lifecycle,
        api_keys: Sequence[str],
        starting: Callable[[], str],
        observe: Observe,
    ) -> None:
        self._app, self._lifecycle, self._starting, self._observe = app, lifecycle, starting, observe
        self._api_keys = [key.encode() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, received = time.monotonic(), 500, 0

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._lifecycle.leaving:  # so that the client's next request goes to another server
                    MutableHeaders(raw=message["headers"])["connection"] = "close"
            await send(message)

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:  # sent in chunks, so that no header told
                raise HTTPException(413, TOO_LARGE, headers={"connection": "close"})
            return message

        counted = scope["path"] not in OPEN_PATHS
        refusal = self._refusal(scope) if counted else None
        if counted and refusal is None:
            self._lifecycle.enter()
        try:
            if refusal is not None:
                await refusal.response()(scope, receive, send_and_look)
            else:
                await self._app(scope, receive_within_limit, send_and_look)
        finally:
            if counted and refusal is None:
                self._lifecycle.leave()
            route = scope.get("route")
            handler = getattr(route, "path", "none")  # never the raw path: its values are without number
            self._observe(handler, scope["method"], status, time.monotonic() - begun)

    def _refusal(self, scope: Scope) -> ApiError | None:
        if self._api_keys and not self._key_is_known(Headers(scope=scope).get("authorization", "")):
            return ApiError(
                401,
                "the API key is missing or wrong: send it as `Authorization: Bearer KEY`",
                headers={"www-authenticate": "Bearer"},
            )
        if self._lifecycle.state is State.STARTING:
            return ApiError(503, self._starting(), headers={"retry-after": RETRY_SECONDS})
        if self._lifecycle.state is State.STOPPING:
            return ApiError(503, "this server is shutting down: try again", headers={"retry-after": "1"})
        if int(Headers(scope=scope).get("content-length", "0")) > MAX_BODY_BYTES:
            return ApiError(413, TOO_LARGE, headers={"connection": "close"})
        return None

    def _key_is_known(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        sent = key.strip().encode()
        # Every key is compared, each in constant time, so that the answer's time tells nothing.
        matches = [hmac.compare_digest(sent, known) for known in self._api_keys]
        return scheme.lower() == "bearer" and any(matches)
