"""A real server: `quire-engine serve` in its own process, reached over HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

START_SECONDS = 120


@dataclass
class Server:
    """A running server. `log` holds its output, `run_dir` its control socket and termination log."""

    process: subprocess.Popen[bytes]
    port: int
    run_dir: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.run_dir / "log").read_text(errors="replace")

    @property
    def termination_message(self) -> str:
        return (self.run_dir / "termination-log").read_text()

    def client(self, **options: object) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **options})  # type: ignore[arg-type]  # mixed values

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def health(self) -> int:
        return httpx.get(f"{self.url}/health").status_code

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        from prometheus_client.parser import text_string_to_metric_families

        samples = [
            sample
            for family in text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert samples, f"{name} is not exposed"
        return sum(sample.value for sample in samples)

    def engine_pid(self) -> int:
        """The engine process: the server's only child."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        assert len(children) == 1, children
        return int(children[0])

    def drain(self, *flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "quire_engine.cli", "drain", "--port", str(self.port), *flags]
        return subprocess.run(command, env=self._environment(), capture_output=True, text=True, timeout=60, check=False)

    def wait_until_ready(self) -> None:
        until(lambda: self._answers_200() or self.process.poll() is not None, START_SECONDS)
        assert self.process.poll() is None, self.log

    def _answers_200(self) -> bool:
        try:
            return self.health() == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _environment(self) -> dict[str, str]:
        return environment(self.run_dir)


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for a condition; fails the test when it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the awaited state did not come"
        time.sleep(0.05)


def environment(run_dir: Path) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("QUIRE_API_KEY", "VLLM_API_KEY")}
    files = {"QUIRE_RUN_DIR": str(run_dir), "QUIRE_TERMINATION_LOG": str(run_dir / "termination-log")}
    return clean | files | {"OMP_NUM_THREADS": "1"}  # so small a model is only slowed down by a second thread


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


StartServer = Callable[..., Server]


def launch(
    run_dir: Path, model: Path | str, *flags: str, port: int | None = None, program: str = "quire_engine.cli serve"
) -> Server:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "termination-log").touch()
    port = port or free_port()
    command = [sys.executable, "-m", *program.split(), str(model), f"--port={port}", "--host=127.0.0.1"]
    with (run_dir / "log").open("wb") as log:
        process = subprocess.Popen([*command, *flags], stdout=log, stderr=log, env=environment(run_dir))
    return Server(process, port, run_dir)


@pytest.fixture(scope="session")
def server(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as they found it."""
    started = launch(tmp_path_factory.mktemp("server"), tiny_model_dir, "--served-model-name", "tiny", "small")
    started.wait_until_ready()
    yield started
    started.stop()


@pytest.fixture
def start_server(tiny_model_dir: Path, tmp_path: Path) -> Iterator[StartServer]:
    """Starts servers of a test's own: `start_server(*flags, model=..., wait=True)`."""
    started: list[Server] = []

    def start(*flags: str, model: Path | str = tiny_model_dir, wait: bool = True, port: int | None = None) -> Server:
        one = launch(tmp_path / str(len(started)), model, "--served-model-name=tiny", *flags, port=port)
        started.append(one)
        if wait:
            one.wait_until_ready()
        return one

    yield start
    for one in started:
        one.stop()
