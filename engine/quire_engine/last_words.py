"""The one line that a pod leaves behind, where Kubernetes looks for it."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

_KUBELET_READS = 4096
"""Bytes of the message that end up in a pod's status."""


def leave(message: str) -> None:
    """Write `message` as one line into /dev/termination-log, where there is one. QUIRE_TERMINATION_LOG moves it."""
    target = Path(os.environ.get("QUIRE_TERMINATION_LOG") or "/dev/termination-log")
    with contextlib.suppress(OSError):
        if target.exists():
            target.write_bytes(one_line(message).encode()[:_KUBELET_READS])


def give_up(message: str, status: int = 1) -> int:
    """Say why, as the last line of the log too. Returns the exit status."""
    log.error("%s", one_line(message))
    leave(message)
    return status


def one_line(text: str) -> str:
    """`text` with its line breaks and indentation made single spaces."""
    return " ".join(text.split())
