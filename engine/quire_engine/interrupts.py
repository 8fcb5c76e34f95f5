"""Ctrl-C, where it must not come between two lines."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Have a SIGINT inside take effect at the end. A second one, of somebody in a hurry, takes effect at once.

    Without effect outside the main thread, which alone meets signals.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    held = False

    def hold(_: int, __: FrameType | None) -> None:
        nonlocal held
        held = not held
        if not held:
            signal.signal(signal.SIGINT, before)
            signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        signal.raise_signal(signal.SIGINT)
