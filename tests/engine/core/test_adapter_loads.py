"""The engine's loop while an adapter comes from a disk that is slow."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
import zmq

from quire_engine import wire
from quire_engine.adapter_loads import AdapterLoads
from quire_engine.core.adapters import StoredAdapter
from quire_engine.core.loop import EngineCore
from quire_engine.engine import Learned
from quire_engine.engine_process import serve
from tests.engine.core.test_adapters import Adapters
from tests.engine.core.test_loop import CONFIG, request


@dataclass
class SlowDisk:
    """Gives nothing before it is told to."""

    ready: threading.Event = field(default_factory=threading.Event)

    def read(self, path: str) -> StoredAdapter:
        assert self.ready.wait(60)
        if path == "broken":
            raise ValueError("broken")
        return StoredAdapter(bytearray())


@dataclass
class Loop:
    """The engine process's loop, in a thread, as its server hears of it."""

    disk: SlowDisk
    requests: zmq.Socket[bytes]
    replies: zmq.Socket[bytes]

    def send(self, message: wire.ToEngine) -> None:
        self.requests.send(wire.encode(message))

    def next(self) -> wire.FromEngine:
        assert self.replies.poll(60_000)
        return wire.decode_from_engine(self.replies.recv())

    def run(self, name: str, adapter: str | None) -> str | None:
        """A request's error, if it has one. Nothing else may come before it has ended."""
        self.send(wire.Add([replace(request(name, [1, 2, 3]), adapter=adapter)]))
        while True:
            message = self.next()
            assert isinstance(message, wire.StepDone)
            for output in message.outputs:
                if output.finish_reason is not None:
                    return output.error


@pytest.fixture
def loop() -> Iterator[Loop]:
    disk, config = SlowDisk(), replace(CONFIG, max_adapters=1, adapter_room=4)
    core = EngineCore(Adapters(config), config, adapter_files=disk)
    with zmq.Context() as context:
        sockets = [context.socket(kind) for kind in (zmq.PULL, zmq.PUSH, zmq.PUSH, zmq.PULL)]
        inside, outside = sockets[:2], sockets[2:]
        for number, socket in enumerate(inside):
            socket.bind(f"inproc://{number}")
        for number, socket in enumerate(outside):
            socket.connect(f"inproc://{number}")
        loads = AdapterLoads(core, context, inside[0])
        thread = threading.Thread(target=serve, args=(core, loads, Learned(), *inside))
        thread.start()
        try:
            yield Loop(disk, *outside)
        finally:
            disk.ready.set()
            outside[0].send(wire.encode(wire.Stop()))
            thread.join(60)
            for socket in sockets:
                socket.close(0)
    assert not thread.is_alive()


def test_requests_are_answered_while_an_adapter_is_read(loop: Loop) -> None:
    loop.send(wire.LoadAdapter(7, "a", "a"))
    assert loop.run("beside", None) is None
    assert loop.run("early", "a") == "the adapter 'a' is not loaded: load it, or leave it out"
    loop.disk.ready.set()
    assert loop.next() == wire.AdapterDone(7)
    assert loop.run("late", "a") is None


def test_one_that_turns_out_to_be_broken_is_told_of(loop: Loop) -> None:
    loop.send(wire.LoadAdapter(7, "a", "broken"))
    assert loop.run("beside", None) is None
    loop.disk.ready.set()
    assert loop.next() == wire.AdapterDone(7, "broken")


def test_what_is_wrong_at_once_does_not_wait_for_the_disk(loop: Loop) -> None:
    loop.disk.ready.set()
    loop.send(wire.LoadAdapter(7, "a", "a"))
    assert loop.next() == wire.AdapterDone(7)
    loop.disk.ready.clear()
    loop.send(wire.LoadAdapter(8, "a", "a"))
    answer = loop.next()
    assert answer == wire.AdapterDone(8, "the adapter 'a' is loaded already: unload it, or set load_inplace")


def test_the_engine_ends_while_one_is_still_read(loop: Loop) -> None:
    loop.send(wire.LoadAdapter(7, "a", "a"))
    assert loop.run("beside", None) is None
