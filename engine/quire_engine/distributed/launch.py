"""Starting a rank's process, and ending with the process that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

import msgspec

from quire_engine.distributed.messages import RankOptions

PR_SET_PDEATHSIG = 1


def launch(options: RankOptions) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-m", "quire_engine.rank_process"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(options))
    process.stdin.close()
    return process


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies, so that no orphan holds the device's memory."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent_pid and os.getppid() != parent_pid:
        sys.exit("the parent process is gone")
