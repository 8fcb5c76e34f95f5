"""A rank's end of rank 0: finds it, listens for its steps, and ends with it."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import fields, replace
from datetime import timedelta

import msgspec
import torch
import zmq
from torch._C._distributed_c10d import TCPStore
from torch.distributed import DistError

from quire_engine.config import EngineConfig
from quire_engine.core.adapters import Adapting
from quire_engine.core.step import Executor, Recording
from quire_engine.distributed.launch import launch
from quire_engine.distributed.layout import Layout
from quire_engine.distributed.messages import (
    Adopt,
    Failed,
    Prepare,
    RankOptions,
    Record,
    Release,
    Run,
    Unload,
    decode_to_rank,
    encode,
)
from quire_engine.distributed.place import Place, address_towards, in_url, join
from quire_engine.distributed.watch import Watch, quiet
from quire_engine.failure import failure_of
from quire_engine.logs import current_format, current_level
from quire_engine.startup_error import StartupError

log = logging.getLogger(__name__)

_GATHER_SECONDS = 1.5  # so long the order to end may take that rank 0 gave before it went
_LINGER_MILLISECONDS = 1000
_RETRY_SECONDS, _REMINDER_SECONDS = 5, 30.0
# What may differ between nodes: each has its own number, and may keep the model elsewhere.
_OWN = ("node_rank", "model", "tokenizer", "download_dir", "master_addr")


class Follower:
    """A rank other than 0. It waits for rank 0 to come up at `host`:`port`, for as long as it takes.

    `on_lost` is called with the cause, in a thread, when rank 0 goes: it has to end the process. Raises
    `StartupError` where the flags are not those of node 0.
    """

    def __init__(self, config: EngineConfig, rank: int, host: str, port: int, on_lost: Callable[[str], None]) -> None:
        self.rank = rank
        self.layout = Layout.of(config)
        self._config = config
        self._host, self._port = host, port
        self._processes: list[subprocess.Popen[bytes]] = []
        self._place = Place()
        self._store = _find(host, port)
        self._address = address_towards(host)
        self._context = zmq.Context()
        self._sending = threading.Lock()
        self._reports = quiet(self._context.socket(zmq.PUSH))
        self._steps = quiet(self._context.socket(zmq.PULL))
        self._watch = Watch(_GATHER_SECONDS, lambda cause: self._tell_and_end(cause, on_lost))
        self._watch.add_peer(self._reports, f"EngineFailed: node 0 at {host} went away: its log says why")
        self._reports.connect(self._store.get("reports").decode())
        self._watch.start()
        try:
            self._check_flags(msgspec.json.decode(self._store.get("config"), type=EngineConfig))
        except StartupError as error:
            self.fail(error)
            self.close()
            raise

    def gather(self, model: str, device: torch.device) -> Place:
        """Say that this rank is there, start those of its node if it is the first of them, and meet all others."""
        node = self.layout.node(self.rank)
        if node and self.layout.local_rank(self.rank) == 0:
            config = replace(self._config, model=model)
            for rank in self.layout.ranks_of_node(node)[1:]:
                options = RankOptions(
                    config, rank, self._host, self._port, os.getpid(), current_level(), current_format()
                )
                self._processes.append(launch(options))
                self._watch.add_child(rank, self._processes[-1])
        port = self._steps.bind_to_random_port(f"tcp://{in_url(self._address)}")
        self._store.set(f"steps/{self.rank}", f"tcp://{in_url(self._address)}:{port}")
        one_shot = not self._config.disable_custom_all_reduce
        self._place = join(self._store, self.layout, self.rank, device, self._address, one_shot=one_shot)
        return self._place

    def run(
        self,
        executor: Executor,
        beside: zmq.Socket[bytes] | None = None,
        heed: Callable[[bytes], bool] = lambda _: True,
    ) -> str | None:
        """Run rank 0's steps until it releases this rank. Returns why it ended, where it failed.

        `heed` is given what comes on the socket `beside`, between steps, and is false where this rank is to end.
        """
        preparer = ThreadPoolExecutor(1, "adapter")
        preparing: dict[int, Future[None]] = {}
        poller = zmq.Poller()
        for socket in (self._steps, *([] if beside is None else [beside])):
            poller.register(socket, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll())
                if beside in ready and beside is not None and not heed(beside.recv()):
                    return None
                if self._steps in ready:
                    match decode_to_rank(self._steps.recv()):
                        case Run(step):
                            executor.execute(step)
                        case Record(room):
                            assert isinstance(executor, Recording)
                            executor.record_decodes(room)
                        case Prepare(number, adapter):
                            assert isinstance(executor, Adapting)
                            preparing[number] = preparer.submit(executor.prepare_adapter, number, adapter)
                            del adapter  # not to be kept until the next one
                        case Adopt(number):
                            assert isinstance(executor, Adapting)
                            preparing.pop(number).result()
                            executor.adopt_adapter(number)
                        case Unload(number):
                            assert isinstance(executor, Adapting)
                            if number in preparing:
                                wait([preparing.pop(number)])
                            executor.unload_adapter(number)
                        case Release(cause):
                            return cause
        finally:
            if isinstance(executor, Recording):
                executor.forget_recordings()

    def fail(self, error: Exception) -> None:
        """Tell rank 0 that this rank cannot go on."""
        self._tell(failure_of(error), by_another=comes_of_another(error))

    def close(self) -> None:
        self._watch.stop()
        for process in self._processes:
            process.wait()  # rank 0 has released them too
        self._place.leave()
        self._context.destroy(_LINGER_MILLISECONDS)

    def _tell(self, message: str, *, by_another: bool = False) -> None:
        with self._sending:
            self._reports.send(encode(Failed(self.rank, message, by_another)))

    def _tell_and_end(self, cause: str, on_lost: Callable[[str], None]) -> None:
        self._tell(cause)
        on_lost(cause)

    def _check_flags(self, leaders: EngineConfig) -> None:
        for f in fields(EngineConfig):
            here, there = getattr(self._config, f.name), getattr(leaders, f.name)
            if f.name not in _OWN and here != there:
                flag = "--" + f.name.replace("_", "-")
                raise StartupError(
                    "InvalidFlag",
                    f"{flag} is {here} on node {self._config.node_rank} and {there} on node 0: give all "
                    "nodes the same flags",
                )


def comes_of_another(error: Exception) -> bool:
    """Whether an error only says that another rank has gone."""
    return isinstance(error, RuntimeError) and "by peer" in str(error)


def _find(host: str, port: int) -> TCPStore:
    """Rank 0's store, once it is there."""
    began = reminded = time.monotonic()
    while True:
        try:
            return TCPStore(host, port, None, False, timedelta(seconds=_RETRY_SECONDS), wait_for_workers=False)
        except DistError as error:
            if time.monotonic() - reminded > _REMINDER_SECONDS:
                reminded = time.monotonic()
                log.info("waiting for node 0 at %s:%d: %.0f s (%s)", host, port, reminded - began, _first_line(error))
            time.sleep(0.5)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
