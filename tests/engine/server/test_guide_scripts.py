"""The load scripts of common guides: every answer is right, and the processes are afterwards what they were before."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import httpx
import pytest

from e2e.cluster import packages
from e2e.cluster.errors import ClusterError
from tests.engine.server.conftest import Server, launch, until

AB = {"apache2-utils": "/usr/bin/ab"}
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 16, "temperature": 0}
MIB = 1 << 20


@dataclass(frozen=True)
class Holdings:
    """What the server's and the engine's process hold."""

    resident_bytes: int
    files: int
    threads: int

    @classmethod
    def of(cls, server: Server) -> Holdings:
        pids = server.process.pid, server.engine_pid()
        status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
        memory, threads = (
            sum(int(line.split()[1]) for line in found)
            for found in (
                [line for text in status for line in text.splitlines() if line.startswith(name)]
                for name in ("VmRSS:", "Threads:")
            )
        )
        return cls(memory << 10, sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids), threads)


@pytest.fixture(scope="module")
def server(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = launch(tmp_path_factory.mktemp("guides"), tiny_model_dir, "--served-model-name=tiny")
    one.wait_until_ready()
    yield one
    assert "Traceback" not in one.log
    one.stop()


@pytest.fixture(scope="module")
def expected(server: Server) -> str:
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=ASKED, timeout=60)
    return str(answer.json()["choices"][0]["message"]["content"])


def holds_no_more_after(server: Server, script: Callable[[], None]) -> None:
    """Run a script until what is filled once is full, such as a pool of threads, then three times more."""
    before = Holdings.of(server)
    for _ in range(6):
        script()
        settle(server)
        threads, before = before.threads, Holdings.of(server)
        if before.threads <= threads:
            break
    for _ in range(3):
        script()
    settle(server)
    until(lambda: Holdings.of(server).files <= before.files)
    after = Holdings.of(server)
    assert after.threads <= before.threads + 2
    assert after.resident_bytes - before.resident_bytes < 12 * MIB


def settle(server: Server) -> None:
    until(lambda: httpx.get(f"{server.url}/load").json() == {"server_load": 0})
    until(lambda: server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting") == 0)
    assert server.metric("vllm:kv_cache_usage_perc") == 0


def test_a_gather_of_twenty_by_aiohttp(server: Server, expected: str) -> None:
    async def ask(session: aiohttp.ClientSession) -> str:
        async with session.post(f"{server.url}/v1/chat/completions", json=ASKED) as answer:
            assert answer.status == 200
            return str((await answer.json())["choices"][0]["message"]["content"])

    async def gather() -> list[str]:
        async with aiohttp.ClientSession() as session:
            return await asyncio.gather(*(ask(session) for _ in range(20)))

    def script() -> None:
        assert asyncio.run(gather()) == [expected] * 20

    holds_no_more_after(server, script)


@pytest.mark.parametrize("flags", [[], ["-k"]])
def test_ab_with_ten_at_once(server: Server, tmp_path: Path, flags: list[str]) -> None:
    """By HTTP/1.0, which asks for connections to be kept open or not. It compares the answers' lengths itself."""
    try:
        packages.ensure(AB)
    except ClusterError as error:
        pytest.skip(f"no ab: {error}")  # on a laptop without root; the release check installs it
    (tmp_path / "body").write_text(json.dumps(ASKED))
    what = ["-n", "60", "-c", "10", "-s", "120", "-p", str(tmp_path / "body"), "-T", "application/json"]

    def script() -> None:
        command = [*AB.values(), *flags, *what, f"{server.url}/v1/chat/completions"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
        found = {name: int(value) for name, value in re.findall(r"^([A-Za-z0-9 -]+):\s+(\d+)$", said, re.MULTILINE)}
        assert found["Complete requests"] == 60
        assert found["Failed requests"] == 0, said
        assert "Non-2xx responses" not in found

    holds_no_more_after(server, script)


def test_a_loop_of_curl(server: Server, expected: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not on PATH")  # a laptop's lack is no fault of the server
    ask = f"curl -sf {server.url}/v1/chat/completions -H 'content-type: application/json' -d '{json.dumps(ASKED)}'"
    loop = f"for i in $(seq 10); do {ask} & {ask}; echo; wait; done"

    def script() -> None:
        said = subprocess.run(["bash", "-c", loop], capture_output=True, text=True, timeout=300, check=True).stdout
        answers = re.findall(r'"content":("(?:[^"\\]|\\.)*")', said)
        assert [json.loads(answer) for answer in answers] == [expected] * 20

    holds_no_more_after(server, script)
