"""`quire-engine serve`: one process for HTTP, one for the engine, and what ties their lives together."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import uvloop

from quire_engine.config import EngineConfig
from quire_engine.drain import control_socket, serve_control
from quire_engine.large_heap import settle
from quire_engine.last_words import give_up
from quire_engine.logs import configure_logging, parts_of
from quire_engine.server.api_keys import ApiKeys
from quire_engine.server.engine_client import EngineClient
from quire_engine.server.lifecycle import Lifecycle
from quire_engine.server.settings import ServerSettings
from quire_engine.server.tls import load_certificate
from quire_engine.server.tracing.target import TraceTarget, trace_target
from quire_engine.startup_error import StartupError

log = logging.getLogger(__name__)

BACKLOG = 4096


def serve(config: EngineConfig, settings: ServerSettings) -> int:
    """Serve until SIGTERM or until the engine fails. Returns the process's exit status."""
    configure_logging(settings.uvicorn_log_level, settings.log_format)
    _raise_file_limit()
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "AddressInUse" if taken else "InvalidFlag"
        hint = "name a free one with --port" if taken else "name another address with --host, or another --port"
        return give_up(f"{reason}: cannot listen on {settings.host}:{settings.port} ({error.strerror}): {hint}")
    try:
        if settings.ssl_certfile is not None:
            load_certificate(settings)  # what cannot be used is said before anything is loaded
        keys = ApiKeys(settings.api_key, settings.api_key_file)
        traces = trace_target(settings.otlp_traces_endpoint, os.environ)
    except StartupError as error:
        return give_up(str(error))
    if config.node_rank > 0:
        from quire_engine.server.follower import FollowerProcess

        failure = uvloop.run(FollowerProcess(config, settings, listener).run())
    else:
        failure = uvloop.run(_Process(config, settings, listener, keys, traces).run())
    return 0 if failure is None else give_up(failure)


def _raise_file_limit() -> None:
    """Each stream is a file, and container runtimes begin with 1024 of them where many more are allowed."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # a kernel with a lower bound of its own: it stays as it is
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(BACKLOG)  # now, as two sockets may be bound to a port, and the second finds out here
    return listener


@dataclass
class _Process:
    """The server process from its first task to its last."""

    config: EngineConfig
    settings: ServerSettings
    listener: socket.socket
    keys: ApiKeys
    traces: TraceTarget | None
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    async def run(self) -> str | None:
        """Returns what made the server fail; None when it was asked to stop."""
        lifecycle = Lifecycle(self.settings.endpoints_lag, self.settings.shutdown_timeout)
        # At once: a container's first process never gets a signal that it has no handler for.
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, lifecycle.stop)
        try:
            async with contextlib.AsyncExitStack() as at_end:
                return await self._serve(lifecycle, at_end)
        except StartupError as error:
            return str(error)
        except Exception as error:
            log.exception("the server failed")
            return f"EngineFailed: {error}"

    async def _serve(self, lifecycle: Lifecycle, at_end: contextlib.AsyncExitStack) -> str | None:
        """Start everything, each with its end on `at_end`, and wait for the end. Returns what `run` does."""
        at_end.push_async_callback(self._cancel_tasks)
        # First of all the engine process: it imports torch and reads weights while this one imports the rest.
        client = EngineClient(
            self.config, log_level=self.settings.uvicorn_log_level, log_format=self.settings.log_format
        )
        at_end.push_async_callback(client.close)
        client.start()
        from quire_engine.server.adapters import Adapters
        from quire_engine.server.app import create_app
        from quire_engine.server.errors import ApiError
        from quire_engine.server.http_server import HttpServer
        from quire_engine.server.metrics import Metrics
        from quire_engine.server.service import Service
        from quire_engine.server.throughput import follow_throughput

        names = self.settings.served_model_name or (self.config.model,)
        max_loras = self.config.max_loras if self.config.enable_lora else 0
        metrics = Metrics(names[0], legacy=self.settings.legacy_metrics, max_loras=max_loras)
        adapters = Adapters(client, names, self.settings.allow_runtime_lora_updating)
        service = Service(self.settings, self.keys, lifecycle, metrics, client, names, adapters)
        if self.traces is not None:
            from quire_engine.server.tracing.export import SpanExport  # which takes a quarter of a second

            service.spans = SpanExport(self.traces)
            at_end.push_async_callback(asyncio.to_thread, service.spans.close)
        server = HttpServer(create_app(service), self.settings)
        lifecycle.on_retire = server.retire_busy_connections
        lifecycle.on_close_idle = server.close_idle_connections
        path = control_socket(self.listener.getsockname()[1])
        control = await serve_control(path, lifecycle.drain)
        at_end.callback(path.unlink, missing_ok=True)
        at_end.callback(control.close)
        at_end.push_async_callback(server.stop, self._start(server.serve(sockets=[self.listener])))
        self._start(follow_throughput(service))
        becoming_ready = self._start(_become_ready(self.config, service, self.listener))
        dead, stop = self._start(client.dead.wait()), self._start(lifecycle.stop_requested.wait())
        await _any_of(dead, stop, becoming_ready)
        if becoming_ready.done():
            becoming_ready.result()  # raises what went wrong
            await _any_of(dead, stop)
        if not dead.done():
            await _any_of(dead, self._start(lifecycle.finished()))
            client.fail_unfinished(ApiError(503, "the server was stopped before this request was finished"))
        return client.failure if dead.done() else None

    async def _cancel_tasks(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self.tasks.append(task)
        return task


async def _any_of(*tasks: asyncio.Task[Any]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def _become_ready(config: EngineConfig, service: Any, listener: socket.socket) -> None:
    """Load the tokenizer beside the engine's start, and open the doors when both are there."""
    from quire_engine.server.startup import complete

    await complete(config, service)
    settle()
    client = service.client
    log.info("ready after %.1f s (%s)", time.monotonic() - client.launched, parts_of(client.startup_seconds))
    host, port = listener.getsockname()[:2]
    log.info("serving %s on %s:%d", ", ".join(service.model_names), f"[{host}]" if ":" in host else host, port)
