"""The server's end of the engine process: starts it, sends requests, hands out what comes back, notices its death."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import msgspec
import zmq
import zmq.asyncio

from quire_engine import wire
from quire_engine.config import EngineConfig
from quire_engine.core.messages import EngineInfo, EngineOutput, EngineRequest, EngineStats, Vocabulary
from quire_engine.server.errors import ApiError
from quire_engine.server.mailbox import Mailbox
from quire_engine.wire import LaunchOptions, input_address, output_address

log = logging.getLogger(__name__)

PING_SECONDS = 1.0


class EngineClient:
    """Starts the engine process and talks to it. All methods belong to the event loop's thread."""

    def __init__(self, config: EngineConfig, *, log_level: str = "info", log_format: str = "text") -> None:
        self.config = config
        self.info: EngineInfo | None = None
        self.stats = EngineStats()
        self.phase = "starting"
        self.startup_seconds: dict[str, float] = {}
        self.last_sign = time.monotonic()  # when the engine was last heard of
        self.ready = asyncio.Event()
        self.dead = asyncio.Event()
        self.model: wire.ModelRead | None = None
        self.model_read = asyncio.Event()  # `model` is there, or the engine is dead
        self.released = asyncio.Event()  # on a node that follows another: that one has ended well
        self.failure: str | None = None  # why the engine is gone: `Reason: one line`
        self.on_step: Callable[[wire.StepDone], None] = lambda _: None
        self._mailboxes: dict[str, Mailbox] = {}
        self._tickets: dict[int, asyncio.Future[str | None]] = {}
        self._num_tickets = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._folder = tempfile.mkdtemp(prefix="quire-")
        self._context = zmq.asyncio.Context()
        # Not an asyncio socket: one without a high-water mark takes a message at once, or has no peer any more.
        self._requests: zmq.Socket[bytes] = zmq.Context.shadow(self._context).socket(zmq.PUSH)
        self._replies = self._context.socket(zmq.PULL)
        for socket in (self._requests, self._replies):
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.LINGER, 0)
        self._requests.bind(input_address(self._folder))
        self._replies.bind(output_address(self._folder))
        self.launched = time.monotonic()
        options = LaunchOptions(config, self._folder, log_level, log_format, os.getpid(), self.launched)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "quire_engine.engine_main"], stdin=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(options))
        self._process.stdin.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        """Begin to listen. Call once, inside the running event loop."""
        self._tasks = [
            asyncio.create_task(self._receive()),
            asyncio.create_task(self._watch_process()),
            asyncio.create_task(self._ping()),
        ]

    def submit(self, requests: list[EngineRequest], mailbox: Mailbox) -> None:
        """Hand over requests whose outputs go to `mailbox`. Raises `ApiError` when the engine is gone."""
        if self.failure is not None:
            raise ApiError(500, f"the engine has failed: {self.failure}")
        for request in requests:
            self._mailboxes[request.request_id] = mailbox
        self._send(wire.Add(requests))

    def teach(self, vocabulary: Vocabulary) -> None:
        """Tell the engine its tokens, so that it need not load the tokenizer for its first grammar."""
        if self.failure is None:
            self._send(wire.Learn(vocabulary))

    async def load_adapter(self, name: str, path: str, *, replace_it: bool) -> None:
        """Have requests choose the adapter in a folder by `name`. Raises `ApiError` that says what is wrong."""
        await self._changed(lambda ticket: wire.LoadAdapter(ticket, name, path, replace_it))

    async def unload_adapter(self, name: str) -> None:
        """Have no further requests choose an adapter. Raises `ApiError`."""
        await self._changed(lambda ticket: wire.UnloadAdapter(ticket, name))

    async def _changed(self, message: Callable[[int], wire.ToEngine]) -> None:
        if self.failure is not None:
            raise ApiError(500, f"the engine has failed: {self.failure}")
        self._num_tickets += 1
        ticket = self._num_tickets
        self._tickets[ticket] = done = asyncio.get_running_loop().create_future()
        self._send(message(ticket))
        error = await done
        if error is not None:
            raise ApiError(400, error, param="lora_name")

    def abort(self, request_ids: list[str]) -> None:
        """Forget these requests and free their pages. Ids that have ended already are ignored."""
        known = [i for i in request_ids if self._mailboxes.pop(i, None) is not None]
        if known and self.failure is None:
            self._send(wire.Abort(known))

    def fail_unfinished(self, failure: ApiError) -> None:
        """End every request that is still running with an error."""
        mailboxes = {id(mailbox): mailbox for mailbox in self._mailboxes.values()}
        self.abort(list(self._mailboxes))
        for mailbox in mailboxes.values():
            mailbox.fail(failure)

    def seconds_silent(self) -> float:
        """How long the engine has owed a sign of life: an idle engine is pinged every second."""
        return time.monotonic() - self.last_sign

    async def close(self) -> None:
        """End the engine process and free the sockets."""
        if self._process.poll() is None:
            if self.failure is None and self.ready.is_set():
                self._send(wire.Stop())
            else:
                self._process.kill()  # it loads, and hears nothing; or it failed, and does not end
            try:
                await asyncio.to_thread(self._process.wait, 5)
            except subprocess.TimeoutExpired:
                log.warning("the engine did not stop within 5 s: killing it")
                self._process.kill()
                await asyncio.to_thread(self._process.wait)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._requests.close()
        self._replies.close()
        self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _send(self, message: wire.ToEngine) -> None:
        # No peer: the engine process has ended, and whoever waits hears of it from _watch_process.
        with contextlib.suppress(zmq.Again):
            self._requests.send(wire.encode(message), zmq.NOBLOCK)

    async def _receive(self) -> None:
        while True:
            message = wire.decode_from_engine(await self._replies.recv())
            self.last_sign = time.monotonic()
            match message:
                case wire.StepDone():
                    self.stats = message.stats
                    self.on_step(message)
                    for output in message.outputs:
                        self._deliver(output)
                case wire.Pong(stats):
                    self.stats = stats
                case wire.Phase(name, seconds):
                    self.phase = name
                    self.startup_seconds[name] = seconds
                case wire.ModelRead():
                    self.model = message
                    self.model_read.set()
                case wire.Ready(info):
                    self.info = info
                    self.ready.set()
                case wire.AdapterDone(ticket, error):
                    done = self._tickets.pop(ticket)
                    if not done.done():
                        done.set_result(error)
                case wire.Failed(text):
                    self._die(text)
                case wire.Released():
                    self.released.set()

    def _deliver(self, output: EngineOutput) -> None:
        ended = output.finish_reason is not None
        mailbox = self._mailboxes.pop(output.request_id, None) if ended else self._mailboxes.get(output.request_id)
        if mailbox is not None:  # else it was aborted while this was on its way
            mailbox.put(output)

    async def _watch_process(self) -> None:
        """The process may die without a word: killed by the kernel, or by a signal."""
        code = await asyncio.to_thread(self._process.wait)
        await asyncio.sleep(0.3)  # its last words may still be in the socket
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        reason = "OutOfMemory" if code == -9 else "EngineFailed"
        hint = ": the kernel kills with 9 when memory runs out" if code == -9 else ""
        self._die(f"{reason}: the engine process ended by {cause}{hint}")

    async def _ping(self) -> None:
        await self.ready.wait()
        while True:
            await asyncio.sleep(PING_SECONDS)
            if self.seconds_silent() >= PING_SECONDS / 2:
                self._send(wire.Ping())

    def _die(self, message: str) -> None:
        if self.failure is not None:
            return
        self.failure = message
        self.fail_unfinished(ApiError(500, f"the engine has failed: {message}"))
        for done in self._tickets.values():
            if not done.done():
                done.set_exception(ApiError(500, f"the engine has failed: {message}"))
        self.dead.set()
        self.model_read.set()
