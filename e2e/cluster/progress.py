"""One line when a stage begins, one with its time when it ends."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_started = time.monotonic()
_lock = threading.Lock()


def say(text: str) -> None:
    """Print one line with the seconds since the program began, on standard error: what a command finds is on the other.

    Safe from any thread.
    """
    with _lock:
        print(f"{time.monotonic() - _started:6.1f} s  {text}", file=sys.stderr, flush=True)


@contextmanager
def stage(what: str, *, remind_every: float = 30.0) -> Iterator[None]:
    """Say what begins, every `remind_every` seconds that it still goes on, and how long it took."""
    began = time.monotonic()
    over = threading.Event()

    def remind() -> None:
        while not over.wait(remind_every):
            say(f"  still at it after {time.monotonic() - began:.0f} s: {what}")

    say(f"{what} ...")
    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    try:
        yield
    except BaseException:
        say(f"FAILED after {time.monotonic() - began:.1f} s: {what}")
        raise
    finally:
        over.set()
        reminder.join()
    say(f"done in {time.monotonic() - began:.1f} s: {what}")
