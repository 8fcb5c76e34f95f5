"""Run kubectl against one cluster."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from e2e.cluster import binaries
from e2e.cluster.errors import ClusterError


class Kubectl:
    """kubectl with one kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self._command = [str(binaries.find("kubectl")), f"--kubeconfig={kubeconfig}"]

    def __call__(self, *arguments: str, input: str | None = None, timeout: float | None = 120) -> str:
        """Run one command and return its standard output. Raises ClusterError with what it said when it fails."""
        result = self.attempt(*arguments, input=input, timeout=timeout)
        if result.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)} failed: {(result.stderr or result.stdout).strip()}")
        return result.stdout

    def attempt(
        self, *arguments: str, input: str | None = None, timeout: float | None = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run one command whose failure is an answer too."""
        command = [*self._command, *arguments]
        return subprocess.run(command, input=input, capture_output=True, text=True, timeout=timeout, check=False)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command that goes on, such as `port-forward`; its standard output is a pipe."""
        return subprocess.Popen([*self._command, *arguments], stdout=subprocess.PIPE, text=True)

    def until_it_works(self, *arguments: str, seconds: float = 60) -> str:
        """Repeat a command until it succeeds. Raises ClusterError with its last failure once `seconds` have passed."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self(*arguments)
            except ClusterError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
