"""Server-sent events, and noticing a client that has gone away."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quire_engine.server.errors import CLIENT_CLOSED_REQUEST, ApiError
from quire_engine.server.json_answer import json_parts
from quire_engine.server.tracing.facts import current_facts, note_failure

log = logging.getLogger(__name__)

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"


class ClientGoneError(Exception):
    """The client closed its connection before the answer was complete."""


def _of_model(model: object) -> msgspec.Raw:
    assert isinstance(model, BaseModel), model
    return msgspec.Raw(model.model_dump_json(exclude_unset=True).encode())


# What there is one of for each token is a struct, as a pydantic model costs ten times as much to make and write.
_encode = msgspec.json.Encoder(enc_hook=_of_model).encode


def event(body: BaseModel | msgspec.Struct) -> bytes:
    """One event with what is set in `body`, which may hold models and structs."""
    return b"data: " + _encode(body) + b"\n\n"


def large_event(body: BaseModel) -> bytes:
    """As `event`, for a thread: see `json_answer`."""
    return b"".join((b"data: ", *json_parts(body, only_set=True), b"\n\n"))


def error_event(error: ApiError) -> bytes:
    """What went wrong after the stream's head was sent: OpenAI clients raise on an event with `error`."""
    return b"data: " + json.dumps(error.body()).encode() + b"\n\n"


class EventStream(Response):
    """Sends events as they are made. When the client goes away, the source is closed within a step."""

    media_type = "text/event-stream"

    def __init__(self, source: AsyncGenerator[bytes]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        facts = current_facts()
        if facts is not None:
            facts.is_streamed = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sending = asyncio.ensure_future(self._send_all(send))
        try:
            await first_of(sending, _disconnected(receive))
        except ClientGoneError:
            note_failure(CLIENT_CLOSED_REQUEST)
            log.debug("the client went away while it was streamed to")

    async def _send_all(self, send: Send) -> None:
        try:
            async for chunk in self._source:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except ApiError as error:
            note_failure(error.status)
            await send({"type": "http.response.body", "body": error_event(error) + DONE, "more_body": True})
        except Exception as error:  # the head says 200 already: only an event can tell the client
            note_failure(500)
            log.exception("a stream failed")
            fault = ApiError(500, f"this is a fault of the server: {type(error).__name__}")
            await send({"type": "http.response.body", "body": error_event(fault) + DONE, "more_body": True})
        finally:
            await self._source.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_client_leaves(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes away. Raises `ClientGoneError` then."""
    return await first_of(asyncio.ensure_future(work), _disconnected(request.receive))


async def first_of(work: asyncio.Future[T], disconnected: Awaitable[None]) -> T:
    """Wait for `work`, or cancel it and raise `ClientGoneError` once `disconnected` is there first."""
    gone: asyncio.Future[None] = asyncio.ensure_future(disconnected)
    both: set[asyncio.Future[Any]] = {work, gone}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGoneError
        return work.result()
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
