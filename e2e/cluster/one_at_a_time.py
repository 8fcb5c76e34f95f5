"""There is one node a machine, and one command at a time changes it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from e2e.cluster.progress import say

# An abstract name: it is no file, and the kernel frees it when its owner ends.
_NAME = "\0quire-cluster"


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other process brings the node up or takes it down, and keep the others waiting meanwhile."""
    with socket.socket(socket.AF_UNIX) as name:
        told = False
        while not _takes(name):
            if not told:
                say("Another command brings the node up or takes it down: waiting for it")
                told = True
            time.sleep(0.2)
        yield


def _takes(name: socket.socket) -> bool:
    try:
        name.bind(_NAME)
    except OSError:
        return False
    return True
