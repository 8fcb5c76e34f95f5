"""`quire-engine serve` on a node that follows another: ranks of a model, and /health for probes."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from functools import partial

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from quire_engine.config import EngineConfig
from quire_engine.server.engine_client import EngineClient
from quire_engine.server.http_server import HttpServer
from quire_engine.server.settings import ServerSettings

log = logging.getLogger(__name__)


class FollowerProcess:
    """The server process of a node other than 0. It ends with node 0, which decides when."""

    def __init__(self, config: EngineConfig, settings: ServerSettings, listener: socket.socket) -> None:
        self._listener = listener
        self._settings = settings
        self._launch = partial(
            EngineClient, config, log_level=settings.uvicorn_log_level, log_format=settings.log_format
        )
        self._asked, self._stop = False, asyncio.Event()

    async def run(self) -> str | None:
        """Returns what made it fail; None when node 0 ended well, or when it was stopped before it took part."""
        # At once: a container's first process never gets a signal that it has no handler for.
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        client = self._client = self._launch()
        client.start()
        routes = [Route("/health", self._health), Route("/ping", self._health, methods=["GET", "POST"])]
        server = HttpServer(Starlette(routes=routes), self._settings)
        serving = asyncio.create_task(server.serve(sockets=[self._listener]))
        ends = [asyncio.create_task(event.wait()) for event in (client.dead, client.released, self._stop)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        failure = None if client.released.is_set() or self._stop.is_set() else client.failure
        await server.stop(serving)
        await client.close()
        for end in ends:
            end.cancel()
        return failure

    def _on_signal(self) -> None:
        """Node 0 may still need this node for what it answers: only a second signal does not wait for its end."""
        if self._client.ready.is_set() and not self._asked:
            self._asked = True
            log.info("asked to stop: waiting until node 0 has ended")
        else:
            self._stop.set()

    async def _health(self, _: Request) -> JSONResponse:
        client = self._client
        if not client.ready.is_set():
            return JSONResponse({"status": f"the model is being loaded (done last: {client.phase})"}, 503)
        silent = client.seconds_silent()
        if silent > self._settings.stall_timeout:
            return JSONResponse({"status": f"stalled: no sign of the engine for {silent:.0f} s"}, 503)
        return JSONResponse({"status": "ok"})
