"""Loads adapters beside the engine's steps."""

from __future__ import annotations

import contextlib
import threading

import zmq

from quire_engine import wire
from quire_engine.core.adapters import AdapterLoad
from quire_engine.core.loop import EngineCore

_ADDRESS = "inproc://prepared-adapters"


class AdapterLoads:
    """Reads and prepares each adapter in a thread, so that streams do not wait for a disk.

    The thread then sends a message to the socket that the loop listens to, which has it take the adapter in.
    """

    def __init__(self, core: EngineCore, context: zmq.Context[zmq.Socket[bytes]], messages: zmq.Socket[bytes]) -> None:
        self._core, self._context = core, context
        self._loads: dict[int, AdapterLoad] = {}
        messages.bind(_ADDRESS)

    def begin(self, request: wire.LoadAdapter) -> None:
        """Raises `ValueError` for what is known to be wrong at once."""
        load = self._core.begin_load(request.name, request.path, replace_it=request.replace_it)
        self._loads[request.ticket] = load
        # A disk that hangs must not keep the process from ending.
        threading.Thread(target=self._prepare, args=(request.ticket, load), name="adapter", daemon=True).start()

    def end(self, ticket: int) -> None:
        """Take in what has been prepared. Raises `ValueError` that says why that cannot be."""
        self._core.end_load(self._loads.pop(ticket))

    def _prepare(self, ticket: int, load: AdapterLoad) -> None:
        load.prepare()
        with contextlib.suppress(zmq.ZMQError), self._context.socket(zmq.PUSH) as done:  # the engine may have ended
            done.connect(_ADDRESS)
            done.send(wire.encode(wire.AdapterPrepared(ticket)))
