"""The engine process: one loop of schedule, execute, update between two sockets. It never touches JSON or HTTP."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable

import msgspec
import zmq

from quire_engine import wire
from quire_engine.adapter_loads import AdapterLoads
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineStats
from quire_engine.distributed.follower import Follower
from quire_engine.distributed.launch import die_with_parent
from quire_engine.distributed.layout import Layout
from quire_engine.distributed.leader import MASTER_PORT
from quire_engine.distributed.watch import RanksLostError
from quire_engine.engine import Learned, build_engine, build_rank
from quire_engine.failure import failure_of
from quire_engine.large_heap import settle
from quire_engine.logs import configure_logging
from quire_engine.startup_error import StartupError

log = logging.getLogger(__name__)


def main() -> int:
    options = msgspec.json.decode(sys.stdin.buffer.read(), type=wire.LaunchOptions)
    configure_logging(options.log_level, options.log_format)
    die_with_parent(options.parent_pid)
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
            imported = time.monotonic() - options.launched
            log.info("import: %.2f s", imported)
            _on_phase(replies)("import", imported)
            if options.config.node_rank == 0:
                _lead(options, context, requests, replies)
            else:
                _follow(options, requests, replies)
            return 0
        except Exception as error:
            if not isinstance(error, StartupError):
                log.exception("the engine failed")
            replies.send(wire.encode(wire.Failed(failure_of(error))))
            return 1
        finally:
            requests.close()
            replies.close()


def _lead(
    options: wire.LaunchOptions,
    context: zmq.Context[zmq.Socket[bytes]],
    requests: zmq.Socket[bytes],
    replies: zmq.Socket[bytes],
) -> None:
    on_lost, on_model = _on_lost(options.socket_folder), _on_model(replies)
    learned = Learned()
    core, info = build_engine(options.config, _on_phase(replies), on_lost, on_model, learned)
    settle()
    try:
        replies.send(wire.encode(wire.Ready(info)))
        serve(core, AdapterLoads(core, context, requests), learned, requests, replies)
    finally:
        core.close()


def _follow(options: wire.LaunchOptions, requests: zmq.Socket[bytes], replies: zmq.Socket[bytes]) -> None:
    """Be the first rank of a node that follows node 0, until it releases this one."""
    config = options.config
    assert config.master_addr is not None
    rank = Layout.of(config).ranks_of_node(config.node_rank)[0]
    port = config.master_port or MASTER_PORT
    follower = Follower(config, rank, config.master_addr, port, _on_lost(options.socket_folder))
    try:
        built = build_rank(config, follower, _on_phase(replies))
        replies.send(wire.encode(wire.Ready(built.info)))
        cause = follower.run(built.runner, requests, lambda data: _answer(data, replies))
    except Exception as error:
        follower.fail(error)
        raise
    finally:
        follower.close()
    if cause is not None:
        raise RanksLostError(f"EngineFailed: node 0 ended: {cause}")
    replies.send(wire.encode(wire.Released()))


def _answer(data: bytes, replies: zmq.Socket[bytes]) -> bool:
    """Answer this node's server, which has nothing to do but ping. False when the process should end."""
    match wire.decode_to_engine(data):
        case wire.Ping():
            replies.send(wire.encode(wire.Pong(EngineStats())))
        case wire.Stop():
            return False
    return True


def _on_phase(replies: zmq.Socket[bytes]) -> Callable[[str, float], None]:
    return lambda name, seconds: replies.send(wire.encode(wire.Phase(name, seconds)))


def _on_model(replies: zmq.Socket[bytes]) -> Callable[[str, int], None]:
    return lambda directory, vocab_size: replies.send(wire.encode(wire.ModelRead(directory, vocab_size)))


def _on_lost(socket_folder: str) -> Callable[[str], None]:
    """What ends this process when another rank has gone: the main thread may be waiting for it for ever."""

    def end(cause: str) -> None:
        with zmq.Context() as context, context.socket(zmq.PUSH) as replies:
            replies.setsockopt(zmq.LINGER, 2000)
            replies.connect(wire.output_address(socket_folder))
            replies.send(wire.encode(wire.Failed(cause)))
        os._exit(1)

    return end


def serve(
    core: EngineCore,
    loads: AdapterLoads,
    learned: Learned,
    requests: zmq.Socket[bytes],
    replies: zmq.Socket[bytes],
) -> None:
    """Step while there is work; sleep in the socket while there is none."""
    while True:
        while not core.has_work() or requests.poll(0):
            if not _handle(wire.decode_to_engine(requests.recv()), core, loads, learned, replies):
                return
        outputs = core.step()
        with core.profile.span("send"):
            replies.send(wire.encode(wire.StepDone(outputs, core.stats())))


def _handle(
    message: wire.ToEngine, core: EngineCore, loads: AdapterLoads, learned: Learned, replies: zmq.Socket[bytes]
) -> bool:
    """Apply one message. False when the process should end."""
    match message:
        case wire.Add(requests):
            for request in requests:
                core.add_request(request)
        case wire.Learn(vocabulary):
            learned.vocabulary = vocabulary
        case wire.LoadAdapter(ticket):
            if (error := _refusal(lambda: loads.begin(message))) is not None:
                replies.send(wire.encode(wire.AdapterDone(ticket, error)))
        case wire.AdapterPrepared(ticket):
            replies.send(wire.encode(wire.AdapterDone(ticket, _refusal(lambda: loads.end(ticket)))))
        case wire.UnloadAdapter(ticket, name):
            replies.send(wire.encode(wire.AdapterDone(ticket, _refusal(lambda: core.unload_adapter(name)))))
        case wire.Abort(request_ids):
            core.abort(request_ids)
            replies.send(wire.encode(wire.Pong(core.stats())))
        case wire.Ping():
            replies.send(wire.encode(wire.Pong(core.stats())))
        case wire.Stop():
            return False
    return True


def _refusal(change: Callable[[], None]) -> str | None:
    """Change the adapters. Returns why that cannot be, if so."""
    try:
        change()
    except ValueError as error:
        return str(error)
    return None


if __name__ == "__main__":
    sys.exit(main())
