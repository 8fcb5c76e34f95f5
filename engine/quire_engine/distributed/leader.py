"""Rank 0's end of the other ranks: starts those of its node, waits for the rest, sends steps, hears of failures."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import msgspec
import torch
import zmq
from torch._C._distributed_c10d import TCPStore

from quire_engine.config import EngineConfig
from quire_engine.core.step import Step
from quire_engine.distributed.launch import launch
from quire_engine.distributed.layout import Layout
from quire_engine.distributed.messages import RankOptions, Release, Run, ToRank, encode
from quire_engine.distributed.place import Place, address_towards, in_url, join
from quire_engine.distributed.watch import RanksLostError, Watch, quiet
from quire_engine.logs import current_format, current_level
from quire_engine.startup_error import StartupError

log = logging.getLogger(__name__)

MASTER_PORT = 29501  # vLLM's
_GATHER_SECONDS = 0.5
_REMINDER_SECONDS = 30.0
_NAMED_SECONDS = 60.0
_LINGER_MILLISECONDS = 1000


class Leader:
    """Other ranks of one engine, as rank 0 sees them. Raises `StartupError` where it cannot listen.

    `on_lost` is called with the cause, in a thread, when a rank goes: it may end the process. Without it, whatever
    is asked of the ranks next raises `RanksLostError`.
    """

    def __init__(self, config: EngineConfig, on_lost: Callable[[str], None] | None = None) -> None:
        self.rank = 0
        self.layout = Layout.of(config)
        self._config = config
        self._address = _own_address(config)
        self._store = _listen(config, self._address)
        self._context = zmq.Context()
        self._steps: dict[int, zmq.Socket[bytes]] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._sending = threading.Lock()
        self._watch = Watch(_GATHER_SECONDS, on_lost)
        self._place = Place()
        reports = quiet(self._context.socket(zmq.PULL))
        port = reports.bind_to_random_port(f"tcp://{in_url(self._address)}")
        self._store.set("config", msgspec.json.encode(config).decode())
        self._store.set("reports", f"tcp://{in_url(self._address)}:{port}")
        self._watch.add_reports(reports)

    def gather(self, model: str, device: torch.device) -> Place:
        """Start this node's ranks with the directory `model`, and wait until every rank of every node is there."""
        config = replace(self._config, model=model)
        for rank in self.layout.ranks_of_node(0):
            if rank != self.rank:
                options = RankOptions(
                    config, rank, self._address, self._store.port, os.getpid(), current_level(), current_format()
                )
                self._processes[rank] = launch(options)
                self._watch.add_child(rank, self._processes[rank])
        self._watch.start()
        for rank in range(1, self.layout.size):
            address = self._wait_for(rank)
            steps = quiet(self._context.socket(zmq.PUSH))
            self._watch.add_peer(steps, f"EngineFailed: rank {rank} on node {self.layout.node(rank)} went away")
            steps.connect(address)
            self._steps[rank] = steps
        one_shot = not self._config.disable_custom_all_reduce
        self._place = join(self._store, self.layout, self.rank, device, self._address, one_shot=one_shot)
        return self._place

    def send(self, step: Step) -> None:
        """Have every other rank run a step. Raises `RanksLostError`."""
        self.tell(Run(step.without_masks()))

    def tell(self, what: ToRank) -> None:
        """Have every other rank do something, after all that it was told before. Raises `RanksLostError`.

        Any thread may call it.
        """
        if self._watch.cause is not None:
            raise RanksLostError(self._watch.cause)
        message = encode(what)
        with self._sending:
            for steps in self._steps.values():
                steps.send(message)

    def blame(self, error: Exception) -> Exception:
        """What to raise for an error here, which may come of a rank that has gone."""
        cause = self._watch.wait_for_cause(4 * _GATHER_SECONDS)
        return error if cause is None else RanksLostError(cause)

    def close(self, cause: str | None = None) -> None:
        """Let the other ranks end, and wait for those of this node."""
        self._watch.stop()
        with self._sending:
            for steps in self._steps.values():
                with contextlib.suppress(zmq.Again):
                    steps.send(encode(Release(cause)), zmq.NOBLOCK)
        for rank, process in self._processes.items():
            if rank not in self._steps and process.poll() is None:
                process.kill()  # it still starts, and hears nothing
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._place.leave()
        self._context.destroy(_LINGER_MILLISECONDS)

    def _wait_for(self, rank: int) -> str:
        """The address where a rank listens for steps, once it does."""
        began = reminded = time.monotonic()
        while not self._store.check([f"steps/{rank}"]):
            if self._watch.cause is not None:
                raise RanksLostError(self._watch.cause)
            if time.monotonic() - reminded > _REMINDER_SECONDS:
                reminded = time.monotonic()
                seconds = reminded - began
                log.info("waiting for rank %d on node %d: %.0f s", rank, self.layout.node(rank), seconds)
            time.sleep(0.05)
        return str(self._store.get(f"steps/{rank}").decode())


def _own_address(config: EngineConfig) -> str:
    """Where other ranks reach this process: on one machine, nobody else does."""
    if config.nnodes == 1 or config.master_addr is None:
        return "127.0.0.1"
    end = time.monotonic() + _NAMED_SECONDS
    while True:
        try:
            return address_towards(config.master_addr)
        except OSError as error:
            if time.monotonic() > end:
                raise StartupError(
                    "InvalidFlag", f"--master-addr {config.master_addr} is no address of this node ({error.strerror})"
                ) from error
            time.sleep(0.5)  # a pod's name becomes known some seconds after its start


def _listen(config: EngineConfig, address: str) -> TCPStore:
    port = config.master_port or (MASTER_PORT if config.nnodes > 1 else 0)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise StartupError(
            "InvalidFlag",
            f"cannot listen for other ranks on {address}:{port} ({error.strerror}): --master-addr must be an address "
            "of node 0, and --master-port free there",
        ) from error
    port = listener.getsockname()[1]
    return TCPStore(
        address, port, None, True, timedelta(seconds=60), wait_for_workers=False, master_listen_fd=listener.detach()
    )
