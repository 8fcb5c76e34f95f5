"""Daemons are known by pid and birth, die as a group, and with whoever started them where that is asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.cluster.errors import ClusterError
from e2e.cluster.processes import Daemons

OWNER = """
import sys, time
from pathlib import Path
from e2e.cluster.processes import Daemons
daemons = Daemons(Path(sys.argv[1]), die_with_us=True)
daemons.start("sleeper", ["sleep", "300"])
print("started", flush=True)
time.sleep(300)
"""


def eventually(condition: Callable[[], bool]) -> bool:
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_a_daemon_is_found_again_by_another_process_object_and_stopped(tmp_path: Path) -> None:
    Daemons(tmp_path).start("sleeper", ["sleep", "300"])
    again = Daemons(tmp_path)
    assert again.is_running("sleeper")
    again.stop("sleeper")
    assert not again.is_running("sleeper")
    assert again.names() == []


def test_the_children_of_a_daemon_go_with_it(tmp_path: Path) -> None:
    daemons = Daemons(tmp_path)
    child = tmp_path / "child"
    daemons.start("parent", ["sh", "-c", f"sleep 300 & echo $! > {child}; wait"])
    assert eventually(lambda: child.exists() and child.read_text().strip() != "")
    daemons.close()
    pid = int(child.read_text())
    assert eventually(lambda: not os.path.exists(f"/proc/{pid}") or _state(pid) == "Z")


def test_a_pid_that_another_process_has_now_is_not_taken_for_the_daemon(tmp_path: Path) -> None:
    daemons = Daemons(tmp_path)
    (tmp_path / "pid" / "old").write_text(f"{os.getpid()} 1\n")
    assert not daemons.is_running("old")
    daemons.close()  # must not kill us
    assert daemons.names() == []


def test_waiting_for_a_daemon_that_dies_shows_the_end_of_its_log(tmp_path: Path) -> None:
    daemons = Daemons(tmp_path)
    daemons.start("broken", ["sh", "-c", "echo no such flag; exit 3"])
    with pytest.raises(ClusterError, match=r"broken died before it serves(.|\n)*no such flag"):
        daemons.wait_until("broken", lambda: False, seconds=60, what="it serves")


def test_daemons_die_with_a_killed_owner(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "started\n"
    assert Daemons(tmp_path).is_running("sleeper")
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert eventually(lambda: not Daemons(tmp_path).is_running("sleeper"))


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
