"""Starting a rank's process, and ending with the process that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future

import msgspec

from quire_engine.distributed.messages import RankOptions

PR_SET_PDEATHSIG = 1


def launch(options: RankOptions) -> subprocess.Popen[bytes]:
    """Start a rank's process, whichever thread asks for it. Raises `OSError`."""
    started: Future[subprocess.Popen[bytes]] = Future()
    # To the kernel the parent is the thread that forks: this one lives as long as its child.
    threading.Thread(target=_live_with, args=(options, started), name="rank", daemon=True).start()
    return started.result()


def _live_with(options: RankOptions, started: Future[subprocess.Popen[bytes]]) -> None:
    try:
        process = subprocess.Popen([sys.executable, "-m", "quire_engine.rank_process"], stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(options))
        process.stdin.close()
    except OSError as error:
        started.set_exception(error)
        return
    started.set_result(process)
    process.wait()


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies, so that no orphan holds the device's memory.

    The parent is the thread that started this process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent_pid and os.getppid() != parent_pid:
        sys.exit("the parent process is gone")
