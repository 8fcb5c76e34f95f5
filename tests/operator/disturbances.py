"""What befalls a cluster: a daemon that stands still now and then, watches that break, a clock that jumps.

What goes wrong with single requests is `faulty_proxy`'s.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from e2e.cluster import packages
from e2e.cluster.processes import Daemons
from tests.operator.faulty_proxy import FaultyProxy

Count = Callable[[], int]
"""How often a disturbance has happened since it began."""


@contextlib.contextmanager
def stuttering(daemons: Daemons, name: str) -> Iterator[Count]:
    """Have a daemon stand still for most of each second."""
    pid = daemons.pid(name)
    assert pid is not None

    def stutter(done: threading.Event) -> None:
        os.kill(pid, signal.SIGSTOP)
        done.wait(0.7)
        os.kill(pid, signal.SIGCONT)
        done.wait(0.3)

    with _again_and_again(stutter) as stops:
        yield stops


@contextlib.contextmanager
def cutting_watches(proxy: FaultyProxy, seconds: float = 1.0) -> Iterator[Count]:
    """Break every watch that goes through the proxy at once, and again after each `seconds`."""

    def cut(done: threading.Event) -> None:
        done.wait(seconds)
        proxy.cut_watches()

    before = proxy.cut
    proxy.cut_watches()
    with _again_and_again(cut):
        yield lambda: proxy.cut - before


class FakeClock:
    """The clock of one process that is started with `environment`. What counts seconds since some point is true still.

    Raises ClusterError where the library that does this cannot be installed.
    """

    def __init__(self, file: Path) -> None:
        packages.ensure(packages.FAKE_CLOCK)
        self._file = file
        self.jump("+0")
        self.environment = {
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "LD_PRELOAD": glob.glob(packages.FAKE_CLOCK["libfaketime"])[0],
        }

    def jump(self, offset: str) -> None:
        """From now on the clock is off by so much, such as `+1h`; `+0` is the true time."""
        self._file.write_text(offset)

    @contextlib.contextmanager
    def jumping(self, seconds: float = 1.5) -> Iterator[Count]:
        """Have it jump by an hour, to and fro, each `seconds`."""
        offsets = itertools.cycle(("+1h", "-1h", "+0"))

        def jump(done: threading.Event) -> None:
            self.jump(next(offsets))
            done.wait(seconds)

        try:
            with _again_and_again(jump) as jumps:
                yield jumps
        finally:
            self.jump("+0")


@contextlib.contextmanager
def _again_and_again(disturb: Callable[[threading.Event], None]) -> Iterator[Count]:
    """Call `disturb` all the time, in a thread. It waits by the event, which is set in the end."""
    done = threading.Event()
    calls = 0

    def run() -> None:
        nonlocal calls
        while not done.is_set():
            calls += 1
            disturb(done)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield lambda: calls
    finally:
        done.set()
        thread.join()
