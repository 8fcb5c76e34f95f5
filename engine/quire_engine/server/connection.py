"""uvicorn's HTTP connection, with a bound on what a client may make it hold, and for how long."""

from __future__ import annotations

import asyncio
import enum
import json
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from quire_engine.server.errors import error_body

MAX_HEAD_BYTES = 64 * 2**10  # a request's first line and its headers
BODY_BYTES_PER_SECOND = 1024  # a slow link may take its time: each KiB of a body gives another second
NO_WEBSOCKETS = "there are no websockets here: ask by plain HTTP, with stream: true for tokens as they come"


class Part(enum.Enum):
    """What of a request is being received."""

    NONE = "none"  # the last one is whole
    HEAD = "header"
    BODY = "body"


class Connection(HttpToolsProtocol):
    """A connection that refuses what is too slow, too large or no HTTP, and tells a request that its client has gone.

    A header has `receive_timeout` seconds to arrive, a body as many and one more for each KiB. A connection
    kept open between requests is not timed here, nor is what the server itself does not read yet.
    """

    _working_on: RequestResponseCycle | None = None
    _receiving = Part.NONE
    _since = 0.0  # loop.time() from which the client's time counts
    _num_bytes = 0  # received of this part
    _timer: asyncio.TimerHandle | None = None
    _refused = False

    def __init__(self, *arguments: Any, receive_timeout: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._receive_timeout = receive_timeout

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._start_timing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timing()
        super().connection_lost(exc)
        # uvicorn tells the last request that it has read, which with pipelining is one that has not begun.
        cycle = self._working_on
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        self._num_bytes += len(data)
        self._parse(data)
        if self._refused:
            return
        if self._receiving is Part.HEAD and self._num_bytes > MAX_HEAD_BYTES:
            self._refuse_head()
        elif self._receiving is Part.NONE and self._is_answering():
            self._stop_timing()
        elif self._timer is None:
            self._start_timing()

    def _parse(self, data: bytes) -> None:
        parts: list[bytes | memoryview] = [data]  # the last is next
        while parts and not self._refused:
            part = parts.pop()
            try:
                self.parser.feed_data(part)
            except httptools.HttpParserUpgrade as upgrade:
                if self._ignores_upgrade():
                    parts += [memoryview(part)[upgrade.args[0] :], self._head_without_upgrade()]
            except httptools.HttpParserError:
                self._refuse(400, "this is not HTTP/1.1: the request cannot be read")

    # What the parser finds

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect(Part.HEAD)

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._refuse_head()
        elif self.parser.should_upgrade() and self._get_upgrade() == b"websocket":
            self._refuse(400, NO_WEBSOCKETS)
        elif not self._ignores_upgrade():
            self._expect(Part.BODY)
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused and not self._ignores_upgrade():
            self._receiving = Part.NONE
            super().on_message_complete()

    def _ignores_upgrade(self) -> bool:
        """Whether the client offers a protocol such as HTTP/2, as Java's does, and is to be served by HTTP/1.1."""
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _head_without_upgrade(self) -> bytes:
        """The header that the parser has read, for it to go on to the body: it ends a request that would upgrade."""
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/1.1"]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(token for token in value.split(b",") if token.strip().lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(name + b": " + value)
        return b"\r\n".join((*lines, b"", b""))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._working_on = cycle
        super()._start_asgi_task(cycle, app)

    # Time

    def _is_answering(self) -> bool:
        cycle = self._working_on
        return cycle is not None and not cycle.response_complete

    def _expect(self, part: Part) -> None:
        self._receiving, self._num_bytes, self._since = part, 0, self.loop.time()

    def _start_timing(self) -> None:
        self._since = self.loop.time()
        self._timer = self.loop.call_later(self._receive_timeout, self._look_at_time)

    def _stop_timing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_at_time(self) -> None:
        if self.flow.read_paused or (self._is_answering() and self._receiving is not Part.BODY):
            self._start_timing()  # the client waits for us, and not we for it
            return
        allowed = self._receive_timeout
        if self._receiving is Part.BODY:
            allowed += self._num_bytes / BODY_BYTES_PER_SECOND
        left = self._since + allowed - self.loop.time()
        if left > 0:
            self._timer = self.loop.call_later(left, self._look_at_time)
        elif self._receiving is Part.NONE:
            self._timer = None
            self.transport.close()  # nothing was asked: there is nothing to answer
        else:
            self._refuse(408, f"the request's {self._receiving.value} has not arrived within {allowed:.0f} s: send it")

    # Refusals

    def _refuse_head(self) -> None:
        self._refuse(431, f"the request's header is larger than {MAX_HEAD_BYTES} bytes, the most that is read")

    def _refuse(self, status: int, message: str) -> None:
        """Answer in OpenAI's way and close; an answer that has begun, or belongs to an earlier request, comes first."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._stop_timing()
        cycle = self._working_on
        if cycle is not None and not cycle.response_complete:
            if cycle is not self.cycle or not cycle.more_body:
                self.flow.pause_reading()
                cycle.keep_alive = False
                return
            cycle.disconnected = True
            cycle.message_event.set()
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = json.dumps(error_body(status, message)).encode()
            head = STATUS_LINE[status] + b"content-type: application/json\r\nconnection: close\r\n"
            self.transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        self.transport.close()
