"""The engine process: one loop of schedule, execute, update between two sockets. It never touches JSON or HTTP."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys

import msgspec
import zmq

from quire_engine import wire
from quire_engine.config import EngineConfig
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineInfo
from quire_engine.engine import build_engine
from quire_engine.logs import configure_logging
from quire_engine.startup_error import StartupError

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1


def main() -> int:
    options = msgspec.json.decode(sys.stdin.buffer.read(), type=wire.LaunchOptions)
    configure_logging(options.log_level, options.log_format)
    _die_with_parent(options.parent_pid)
    # The server process decides when the engine ends; a SIGTERM to the whole group must not cut streams.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)

    with zmq.Context() as context:
        requests, replies = context.socket(zmq.PULL), context.socket(zmq.PUSH)
        for socket in (requests, replies):
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.LINGER, 2000)
        requests.connect(wire.input_address(options.socket_folder))
        replies.connect(wire.output_address(options.socket_folder))
        try:
            core, info = _start(options.config, replies)
            replies.send(wire.encode(wire.Ready(info)))
            _serve(core, requests, replies)
            return 0
        except StartupError as error:
            replies.send(wire.encode(wire.Failed(str(error))))
            return 1
        except Exception as error:
            log.exception("the engine failed")
            replies.send(wire.encode(wire.Failed(f"{failure_reason(error)}: {type(error).__name__}: {error}")))
            return 1
        finally:
            requests.close()
            replies.close()


def failure_reason(error: Exception) -> str:
    """`OutOfMemory` where memory ran out, on the host or the device, else `EngineFailed`."""
    out = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "alloc" in str(error).lower()
    return "OutOfMemory" if out else "EngineFailed"


def _start(config: EngineConfig, replies: zmq.Socket[bytes]) -> tuple[EngineCore, EngineInfo]:
    def on_phase(name: str, seconds: float) -> None:
        replies.send(wire.encode(wire.Phase(name, seconds)))

    return build_engine(config, on_phase)


def _serve(core: EngineCore, requests: zmq.Socket[bytes], replies: zmq.Socket[bytes]) -> None:
    """Step while there is work; sleep in the socket while there is none."""
    while True:
        while not core.has_work() or requests.poll(0):
            if not _handle(wire.decode_to_engine(requests.recv()), core, replies):
                return
        outputs = core.step()
        replies.send(wire.encode(wire.StepDone(outputs, core.stats())))


def _handle(message: wire.ToEngine, core: EngineCore, replies: zmq.Socket[bytes]) -> bool:
    """Apply one message. False when the process should end."""
    match message:
        case wire.Add(requests):
            for request in requests:
                core.add_request(request)
        case wire.Abort(request_ids):
            core.abort(request_ids)
            replies.send(wire.encode(wire.Pong(core.stats())))
        case wire.Ping():
            replies.send(wire.encode(wire.Pong(core.stats())))
        case wire.Stop():
            return False
    return True


def _die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the server process dies, so that no orphan holds the device's memory."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent_pid and os.getppid() != parent_pid:
        sys.exit("the server process is gone")


if __name__ == "__main__":
    sys.exit(main())
