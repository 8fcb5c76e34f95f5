"""Daemons, each the leader of a session of its own and known by a file with its pid."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from e2e.cluster.errors import ClusterError

# Kills every group named in the folder $1 once standard input ends, that is, once whoever holds the pipe is gone.
_LAST_WILL = (
    'cat > /dev/null; for file in "$1"/*; do read -r pid _ < "$file" && kill -s KILL -- "-$pid"; done 2> /dev/null'
)


class Daemons:
    """The daemons of one folder: `pid/NAME` and `log/NAME.log` for each.

    With `die_with_us`, all of them are killed when this process ends, in whatever way it does.
    """

    def __init__(self, directory: Path, *, die_with_us: bool = False) -> None:
        self.directory = directory
        self._pids = directory / "pid"
        self._logs = directory / "log"
        self._pids.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(exist_ok=True)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._heir = self._executor() if die_with_us else None

    def start(self, name: str, command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None) -> None:
        """Start a daemon in the folder, its output in its log. Raises ClusterError when one of this name runs."""
        if self.is_running(name):
            raise ClusterError(f"{name} runs already in {self.directory}")
        with self.log(name).open("ab") as log:
            child = subprocess.Popen(
                [str(word) for word in command],
                cwd=self.directory,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children[name] = child
        (self._pids / name).write_text(f"{child.pid} {_birth(child.pid)}\n")

    def names(self) -> list[str]:
        """All that were started and not stopped, running or not."""
        return sorted(file.name for file in self._pids.iterdir())

    def pid(self, name: str) -> int | None:
        """The pid of a daemon that runs. None when it does not, also when its pid now belongs to another process."""
        if name in self._children:
            self._children[name].poll()  # reaps it
        try:
            pid, birth = (self._pids / name).read_text().split()
        except FileNotFoundError:
            return None
        return int(pid) if _is_alive(int(pid)) and _birth(int(pid)) == birth else None

    def is_running(self, name: str) -> bool:
        """Whether the daemon's own process is alive."""
        return self.pid(name) is not None

    def log(self, name: str) -> Path:
        """Where the daemon's output goes."""
        return self._logs / f"{name}.log"

    def wait_until(self, name: str, ready: Callable[[], bool], *, seconds: float, what: str) -> None:
        """Return once `ready()`. Raises ClusterError with the end of the log when the daemon dies or time is up."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.is_running(name):
                raise ClusterError(f"{name} died before {what}; {self.log(name)} ends with:\n{self._end_of_log(name)}")
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"gave up after {seconds:.0f} s waiting until {what}; "
                    f"{self.log(name)} ends with:\n{self._end_of_log(name)}"
                )
            time.sleep(0.1)

    def stop(self, *names: str, how: signal.Signals = signal.SIGTERM, seconds: float = 10.0) -> None:
        """Signal the groups of these daemons and return when they are gone, by SIGKILL once `seconds` have passed."""
        pids = {name: pid for name in names if (pid := self.pid(name)) is not None}
        for pid in pids.values():
            _signal_group(pid, how)
        deadline = time.monotonic() + seconds
        for name, pid in pids.items():
            while self.is_running(name):
                if time.monotonic() > deadline:
                    _signal_group(pid, signal.SIGKILL)
                time.sleep(0.02)
        for name in names:
            (self._pids / name).unlink(missing_ok=True)
            self._children.pop(name, None)

    def close(self) -> None:
        """Stop everything at once, with SIGKILL: for daemons whose state is thrown away."""
        self.stop(*self.names(), how=signal.SIGKILL)
        if self._heir:
            self._heir.communicate()

    def _executor(self) -> subprocess.Popen[bytes]:
        command = ["sh", "-c", _LAST_WILL, "sh", str(self._pids)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def _end_of_log(self, name: str, lines: int = 15) -> str:
        return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-lines:])


def _is_alive(pid: int) -> bool:
    """Whether the process still holds anything, such as a port.

    A zombie without threads does not, and some machines' PID 1 takes its time to reap; one with threads still may.
    """
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z" or threads > 1


def _birth(pid: int) -> str:
    """The start time of a process in clock ticks since boot: with the pid it names one process for good."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    return text.rpartition(")")[2].split()[19]


def _signal_group(pid: int, how: signal.Signals) -> None:
    try:
        os.killpg(pid, how)
    except ProcessLookupError:
        return
