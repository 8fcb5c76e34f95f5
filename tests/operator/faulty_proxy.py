"""A proxy before the API server that answers some requests with 429, cuts watches and adds delays, on demand."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import aiohttp
from aiohttp import web

from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.kubeconfig import User, write_kubeconfig

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


class FaultyProxy:
    """Use `faulty_proxy`. The attributes may be changed at any time and from any thread."""

    def __init__(self, plane: ControlPlane) -> None:
        self.refuse_every: int = 0
        """Every n-th request is answered 429 with Retry-After: 1, watches too; 0 refuses none."""

        self.delay: float = 0.0
        """Seconds by which every answer is late."""

        self.refused = 0
        """Requests answered 429 so far."""

        self.delayed = 0
        """Requests answered late so far."""

        self.cut = 0
        """Watches broken so far."""

        self.port = 0
        self._plane = plane
        self._context = ssl.create_default_context(cafile=str(plane.authority.pair.certificate))
        self._numbers = itertools.count(1)
        self._requests: dict[web.StreamResponse, web.Request] = {}
        self._loop = asyncio.new_event_loop()
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    def start(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        self._thread.start()
        if not self._ready.wait(30):
            raise TimeoutError("the proxy does not start")

    def close(self) -> None:
        """Stop listening and cut what is open."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def kubeconfig(self, directory: Path, user: User) -> Path:
        """A kubeconfig of `user` that goes through the proxy."""
        path = directory / "through-the-proxy.kubeconfig"
        write_kubeconfig(path, f"http://127.0.0.1:{self.port}", self._plane.authority.pair.certificate, user)
        return path

    def cut_watches(self) -> int:
        """Break every watch that is open, without an end of the stream. Returns how many there were."""

        async def cut() -> int:
            cut_now = list(self._requests.values())
            for request in cut_now:
                if request.transport is not None:
                    request.transport.abort()
            self.cut += len(cut_now)
            return len(cut_now)

        return asyncio.run_coroutine_threadsafe(cut(), self._loop).result(30)

    async def _serve(self) -> None:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", self._forward)
        connector = aiohttp.TCPConnector(limit=0, ssl=self._context)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._session:
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.port = int(runner.addresses[0][1])
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        self.delayed += self.delay > 0
        await asyncio.sleep(self.delay)
        if self.refuse_every and next(self._numbers) % self.refuse_every == 0:
            self.refused += 1
            status = {"kind": "Status", "apiVersion": "v1", "code": 429, "reason": "TooManyRequests"}
            return web.json_response(status, status=429, headers={"Retry-After": "1"})
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        url = f"{self._plane.server_url}{request.path_qs}"
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10)
        body = await request.read() or None  # with an empty one, a GET would have a content type
        async with self._session.request(request.method, url, headers=headers, data=body, timeout=limits) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            if request.query.get("watch") == "true":
                self._requests[response] = request
            try:
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
            except (ConnectionError, aiohttp.ClientError):
                pass  # the client has gone, or was cut off
            finally:
                self._requests.pop(response, None)
            return response


@contextlib.contextmanager
def faulty_proxy(plane: ControlPlane) -> Iterator[FaultyProxy]:
    """A proxy that listens, and is gone afterwards."""
    proxy = FaultyProxy(plane)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.close()
