"""Notices, beside whatever its process is doing, that another rank has gone, and finds out why."""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Callable

import zmq
from zmq.utils.monitor import recv_monitor_message

from quire_engine.distributed.messages import Failed, decode_from_rank
from quire_engine.startup_error import StartupError

log = logging.getLogger(__name__)

_TICK_SECONDS = 0.25
# A process that ends is noticed at once. A machine that fell silent is missed by the kernel, which waits so long for
# its kernel to acknowledge heartbeats: whatever a rank is doing, loading or a long step, that does not wait for it. One
# whose kernel lives and which answers nobody is given up after longer.
_HEARTBEAT_SECONDS, _UNACKNOWLEDGED_SECONDS, _LOST_SECONDS = 0.5, 2.5, 10
# When one rank goes, the others stumble: what they say counts less than how it ended.
_STUMBLED, _LOST, _EXITED, _FAILED, _KILLED = range(5)


class RanksLostError(StartupError):
    """Another rank has gone, at the start or later, and with it the engine. The text is `Reason: one line`."""

    def __init__(self, cause: str) -> None:
        Exception.__init__(self, cause)
        self.reason = cause.partition(":")[0]


def quiet(socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """A socket that queues without limit, never blocks the end of its process for long, and misses lost peers."""
    for option, value in (
        (zmq.SNDHWM, 0),
        (zmq.RCVHWM, 0),
        (zmq.LINGER, 2000),
        (zmq.IPV6, 1),
        (zmq.HEARTBEAT_IVL, int(_HEARTBEAT_SECONDS * 1000)),
        (zmq.HEARTBEAT_TIMEOUT, _LOST_SECONDS * 1000),
        (zmq.TCP_MAXRT, int(_UNACKNOWLEDGED_SECONDS * 1000)),  # TCP_USER_TIMEOUT of RFC 5482
    ):
        socket.setsockopt(option, value)
    return socket


class Watch(threading.Thread):
    """Looks after peers, by the state of the connection to each, and after child processes.

    On the first bad news it waits `gather_seconds` for more, concludes, and calls `on_lost` with the cause, in its
    own thread: the main thread may be waiting for the lost rank.
    """

    def __init__(self, gather_seconds: float, on_lost: Callable[[str], None] | None) -> None:
        super().__init__(name="watch", daemon=True)
        self.cause: str | None = None
        self._gather_seconds = gather_seconds
        self._on_lost = on_lost
        self._peers: dict[zmq.Socket[bytes], str] = {}
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._reports: zmq.Socket[bytes] | None = None
        self._news: list[tuple[int, str]] = []
        self._concluded, self._stopped = threading.Event(), threading.Event()

    def add_peer(self, connection: zmq.Socket[bytes], gone: str) -> None:
        """Watch a socket that connects to one peer. `gone` is what to say when the connection ends."""
        self._peers[connection.get_monitor_socket(zmq.EVENT_DISCONNECTED)] = gone

    def add_child(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        self._children[rank] = process

    def add_reports(self, reports: zmq.Socket[bytes]) -> None:
        """A PULL socket on which ranks say that they fail. From now on only this thread reads it."""
        self._reports = reports

    def stop(self) -> None:
        """From now on peers may go."""
        self._stopped.set()
        if self.is_alive() and threading.current_thread() is not self:
            self.join()

    def wait_for_cause(self, seconds: float) -> str | None:
        self._concluded.wait(seconds)
        return self.cause

    def run(self) -> None:
        first: float | None = None
        while not self._stopped.is_set():
            self._look()
            if self._news and first is None:
                first = time.monotonic()
            if first is not None and time.monotonic() - first >= self._gather_seconds:
                self.cause = max(self._news, key=lambda news: news[0])[1]
                self._concluded.set()
                if self._on_lost is not None:
                    self._on_lost(self.cause)
                return

    def _look(self) -> None:
        poller = zmq.Poller()
        sockets = [*self._peers, *([self._reports] if self._reports is not None else [])]
        for socket in sockets:
            poller.register(socket, zmq.POLLIN)
        for socket, _ in poller.poll(int(_TICK_SECONDS * 1000)):
            if socket is self._reports:
                self._hear(decode_from_rank(self._reports.recv()))
            else:
                recv_monitor_message(socket)
                self._news.append((_LOST, self._peers.pop(socket)))
        for rank, process in list(self._children.items()):
            code = process.poll()
            if code is not None:
                del self._children[rank]
                self._news.append(_end_of(rank, code))

    def _hear(self, message: Failed) -> None:
        log.error("rank %d: %s", message.rank, message.message)
        self._news.append((_STUMBLED if message.by_another else _FAILED, message.message))


def _end_of(rank: int, code: int) -> tuple[int, str]:
    if code == -9:
        return _KILLED, f"OutOfMemory: rank {rank} ended by signal 9: the kernel kills with 9 when memory runs out"
    if code < 0:
        return _KILLED, f"EngineFailed: rank {rank} ended by signal {-code}"
    return _EXITED, f"EngineFailed: rank {rank} ended with exit code {code}"
