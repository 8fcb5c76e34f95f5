"""The middleware in front of every route: who may come in, and how much may be sent."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire_engine.server.api_keys import ApiKeys
from quire_engine.server.errors import ApiError
from quire_engine.server.lifecycle import Lifecycle, State

# The first is a proxy's path alone, which leads to the page.
OPEN_PATHS = frozenset({"", "/", "/health", "/ping", "/metrics", "/metrics/", "/version", "/load"})
RETRY_SECONDS = "5"
# A prompt of a million tokens, spelled as text or ids, fits.
MAX_BODY_BYTES = 32 * 2**20
TOO_LARGE = f"the body is larger than {MAX_BODY_BYTES} bytes, the most that is read: send less in one request"


class Gate:
    """Admits API requests while the server serves, with a valid key; counts them until their answer has ended."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, keys: ApiKeys, starting: Callable[[], str]) -> None:
        self._app, self._lifecycle, self._keys, self._starting = app, lifecycle, keys, starting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].removeprefix(scope["root_path"]) in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal.response()(scope, receive, send)
            return
        received = 0

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:  # sent in chunks, so that no header told
                raise HTTPException(413, TOO_LARGE, headers={"connection": "close"})
            return message

        self._lifecycle.enter()
        try:
            await self._app(scope, receive_within_limit, send)
        finally:
            self._lifecycle.leave()

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if not self._keys.admit(headers.get("authorization", "")):
            return ApiError(
                401,
                "the API key is missing or wrong: send it as `Authorization: Bearer KEY`",
                headers={"www-authenticate": "Bearer"},
            )
        if self._lifecycle.state is State.STARTING:
            return ApiError(503, self._starting(), headers={"retry-after": RETRY_SECONDS})
        if self._lifecycle.state is State.STOPPING:
            return ApiError(503, "this server is shutting down: try again", headers={"retry-after": "1"})
        if int(headers.get("content-length", "0")) > MAX_BODY_BYTES:
            return ApiError(413, TOO_LARGE, headers={"connection": "close"})
        return None
