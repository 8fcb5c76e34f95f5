"""Processes that are ranks again and again, since starting one takes seconds: python imports torch in each.

Run as a script it is such a process: it reads `RankOptions`, one a line, and is that rank until it is released.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from dataclasses import dataclass, field

import msgspec

from quire_engine.distributed.messages import RankOptions

_BEGUN = "import torch, quire_engine.rank_process; from tests.engine.distributed.rank_pool import work; {first}work()"


@dataclass
class PooledRank:
    """What `subprocess.Popen` is to whoever started a rank."""

    process: subprocess.Popen[bytes]
    pool: RankPool
    returncode: int | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def run(self, options: RankOptions) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(msgspec.json.encode(options) + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        self.returncode = int(line) if line else self.process.wait()
        if line:
            self.pool.idle.put(self.process)
        self.done.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        if not self.done.wait(timeout):
            raise subprocess.TimeoutExpired("rank", timeout or 0)
        return self.returncode

    def kill(self) -> None:
        self.process.kill()


class RankPool:
    """`launch` is what `quire_engine.distributed.launch.launch` is, without the start of a process.

    `first` are statements that each process begins with.
    """

    def __init__(self, first: str = "") -> None:
        self._program = _BEGUN.format(first=first)
        self.idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self.launched: list[PooledRank] = []
        self._all: list[subprocess.Popen[bytes]] = []

    def launch(self, options: RankOptions) -> PooledRank:
        rank = PooledRank(self.idle.get() if not self.idle.empty() else self._start(), self)
        self.launched.append(rank)
        threading.Thread(target=rank.run, args=(options,), daemon=True).start()
        return rank

    def start(self, count: int) -> None:
        for _ in range(count):
            self.idle.put(self._start())

    def stop(self) -> None:
        for process in self._all:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        self._all.append(subprocess.Popen([sys.executable, "-c", self._program], stdin=pipe, stdout=pipe))
        return self._all[-1]


def work() -> None:
    from quire_engine.distributed.launch import die_with_parent
    from quire_engine.rank_process import run

    die_with_parent(0)
    for line in sys.stdin.buffer:
        status = run(msgspec.json.decode(line, type=RankOptions))
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()
