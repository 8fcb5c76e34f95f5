"""uvicorn, with signals left to us and its connections in view."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator
from functools import partial
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from quire_engine.server.connection import Connection
from quire_engine.server.settings import ServerSettings
from quire_engine.server.tls import Certificates

KEEP_ALIVE_SECONDS = 75  # above the idle time-out of common load balancers, so that they close first


class HttpServer(uvicorn.Server):
    """A uvicorn server that ends when `should_exit` is set, never by a signal of its own."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=cast(type[asyncio.Protocol], partial(Connection, receive_timeout=settings.receive_timeout)),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=2,
                backlog=4096,
                ssl_context_factory=(lambda *_: Certificates(settings).context) if settings.ssl_certfile else None,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def stop(self, serving: asyncio.Task[None]) -> None:
        """End the task that runs `serve`, and with it every connection."""
        self.should_exit = True
        await asyncio.wait({serving}, timeout=5)

    def retire_busy_connections(self) -> None:
        """Have connections that are in use close once their answer is complete.

        Answers that begin later say `Connection: close`; those that have begun cannot any more.
        """
        for connection in list(self.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_complete:
                cycle.keep_alive = False

    def close_idle_connections(self) -> None:
        """Close connections that wait for a next request; busy ones close after their answer."""
        for connection in list(self.server_state.connections):
            connection.shutdown()
