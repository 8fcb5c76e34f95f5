"""/healthz, /readyz and /metrics."""

from __future__ import annotations

import socket
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest


class HealthServer:
    """Serves until closed. `troubles` lists what makes this process useless; an empty list is healthy."""

    def __init__(self, port: int, troubles: Callable[[], list[str]], count: Callable[[], None]) -> None:
        self._port, self._troubles, self._count = port, troubles, count
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Listen, and return the port."""
        app = web.Application()
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        listener = _listener(self._port)
        await web.SockSite(self._runner, listener).start()
        return int(listener.getsockname()[1])

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        troubles = self._troubles()
        return web.Response(status=503 if troubles else 200, text="\n".join(troubles or ["ok"]) + "\n")

    async def _ready(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")  # a standby is ready too: it is there to take over

    async def _metrics(self, request: web.Request) -> web.Response:
        self._count()
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _listener(port: int) -> socket.socket:
    """One socket for IPv4 and IPv6, so that there is one port when a free one is asked for."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
