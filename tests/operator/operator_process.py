"""`quire-operator run` as a process of its own, as it runs in its pod."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.operator.api_client import eventually

_IN_THE_BACKGROUND = ("leases", "apigroups")
"""The Lease, and which APIs there are."""


class OperatorProcess:
    """Started at once. `stop` is SIGTERM, `kill` is SIGKILL."""

    def __init__(self, kubeconfig: Path, log: Path, *flags: str, environment: Mapping[str, str] | None = None) -> None:
        self.log = log
        ours = {"KUBECONFIG": str(kubeconfig), "POD_NAMESPACE": "quire-system"}
        command = [sys.executable, "-m", "quire_operator.cli", "run", "--health-port=0", *flags]
        with log.open("w") as output:
            self.process = subprocess.Popen(command, env={**os.environ, **ours, **(environment or {})}, stderr=output)

    def lines(self) -> list[dict[str, Any]]:
        """The log so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def says(self, text: str) -> bool:
        """Whether a line of the log contains `text`."""
        return any(text in line["message"] for line in self.lines())

    def wait_until_leading(self) -> None:
        eventually(lambda: self.says("leading as"), 90)

    @property
    def url(self) -> str:
        def port() -> str | None:
            heads = [line["message"] for line in self.lines() if "health on port" in line["message"]]
            return heads[0].rsplit(" ", 1)[1] if heads else None

        return f"http://127.0.0.1:{eventually(port)}"

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples `name` with these labels."""
        return sum(self.values(name, **labels))

    def values(self, name: str, **labels: str) -> list[float]:
        """Each sample `name` with these labels."""
        return [value for found, value in self.samples(name) if labels.items() <= found.items()]

    def calls(self) -> float:
        """Calls to the API on behalf of LLMServices, out of one scrape.

        Those in the background go on, as do watches, which the API server ends every few minutes, and the lists that
        catch what a watch missed.
        """
        found = self.samples("quire_operator_api_calls_total")
        own = ((labels, value) for labels, value in found if labels["verb"] not in ("list", "watch"))
        return sum(value for labels, value in own if labels["resource"] not in _IN_THE_BACKGROUND)

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Labels and values of the samples `name`."""
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text)
        samples = (sample for family in families for sample in family.samples if sample.name == name)
        return [(dict(sample.labels), sample.value) for sample in samples]

    def wait_until_idle(self, seconds: float = 60) -> None:
        """Return when nothing is queued or running, and no call was made for a second."""

        def idle() -> bool:
            before = self.calls()
            time.sleep(1.0)
            busy = self.metric("quire_operator_queue_depth") + self.metric("quire_operator_queue_running")
            return busy == 0 and self.calls() == before

        eventually(idle, seconds)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=20)

    def end(self) -> None:
        """Have it end, if it runs still: by itself, which gives its Lease back, else by force."""
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)
