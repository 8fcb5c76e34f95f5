"""/healthz, /readyz and /metrics."""

from __future__ import annotations

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
        site = web.TCPSite(self._runner, None, self._port)
        await site.start()
        return int(self._runner.addresses[0][1])

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
