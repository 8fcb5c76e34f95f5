"""Thousands of clients at once: nothing is dropped, nothing is left behind, and memory has a bound."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import time
from pathlib import Path

import aiohttp
import pytest

from tests.engine.server.conftest import Server, StartServer, until

NUM_STREAMS, NUM_TOKENS = 2000, 8
NUM_REQUESTS, AT_ONCE = 10_000, 64
MIB = 1 << 20


def resident_bytes(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def num_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100  # user and system, in hundredths on Linux


def wakes(pid: int) -> int:
    """How often threads of a process have begun to run, so far."""
    lines = [line for file in Path(f"/proc/{pid}/task").glob("*/status") for line in file.read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


def client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None, sock_connect=120)
    )


def body(max_tokens: int, stream: bool) -> dict[str, object]:
    asked = {"model": "tiny", "prompt": "Return", "temperature": 0, "ignore_eos": True, "stream": stream}
    return asked | {"max_tokens": max_tokens, "return_token_ids": True}


async def streamed(session: aiohttp.ClientSession, server: Server, begun: asyncio.Event) -> str:
    """The text of one stream, which is whole. `begun` is set once the answer has its head."""
    text, reason = "", None
    async with session.post(f"{server.url}/v1/completions", json=body(NUM_TOKENS, stream=True)) as answer:
        assert answer.status == 200, await answer.text()
        begun.set()
        async for line in answer.content:
            data = line.strip().removeprefix(b"data: ")
            if data == b"[DONE]":
                assert reason == "length"
                return text
            if data:
                choice = json.loads(data)["choices"][0]
                text, reason = text + choice["text"], choice["finish_reason"] or reason
    raise AssertionError("the stream ended without [DONE]")


@pytest.mark.slow
async def test_thousands_of_streams_are_open_at_once_and_none_loses_a_piece(start_server: StartServer) -> None:
    server = start_server("--max-num-seqs=64")
    pid, whole = server.process.pid, server.client().completions
    expected = whole.create(
        model="tiny", prompt="Return", temperature=0, max_tokens=NUM_TOKENS, extra_body={"ignore_eos": True}
    )
    files, memory = num_files(pid), resident_bytes(pid)
    most_files = most_memory = 0
    async with client() as session:
        begun = [asyncio.Event() for _ in range(NUM_STREAMS)]
        tasks = [asyncio.create_task(streamed(session, server, event)) for event in begun]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0.2)
            most_files, most_memory = max(most_files, num_files(pid)), max(most_memory, resident_bytes(pid))
        texts = {task.result() for task in tasks}
    assert texts == {expected.choices[0].text}
    assert most_files - files > 0.9 * NUM_STREAMS, "they were not open at once"
    assert most_memory - memory < NUM_STREAMS * 256 * 1024
    until(lambda: num_files(pid) <= files + 2)


@pytest.mark.slow
async def test_thousands_of_clients_that_leave_when_they_like_leave_nothing_behind(start_server: StartServer) -> None:
    server = start_server("--max-num-seqs=64")
    pid, engine = server.process.pid, server.engine_pid()
    chance, room = random.Random(0), asyncio.Semaphore(AT_ONCE)
    memory = 0

    async def one(session: aiohttp.ClientSession, number: int) -> bool:
        patience = chance.uniform(0, 0.3) if number % 3 == 0 else None
        request = body(chance.randint(1, 6), stream=number % 2 == 0)
        async with room:
            try:
                async with asyncio.timeout(patience):
                    async with session.post(f"{server.url}/v1/completions", json=request) as answer:
                        assert answer.status == 200
                        return len(await answer.read()) > 0
            except TimeoutError:
                return False

    async with client() as session:
        assert await one(session, 1)
        files = num_files(pid), num_files(engine)
        for _ in range(4):
            answered = await asyncio.gather(*(one(session, number) for number in range(NUM_REQUESTS // 4)))
            assert sum(answered) >= NUM_REQUESTS // 4 * 0.6
            memory = memory or resident_bytes(pid)  # of the first part: what is filled once is no leak
    until(lambda: server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting") == 0)
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    assert server.metric("vllm:request_success_total") == pytest.approx(NUM_REQUESTS, rel=0.35)
    assert server.metric("vllm:request_success_total", finished_reason="abort") > NUM_REQUESTS / 100, "few left"
    until(lambda: num_files(pid) <= files[0] and num_files(engine) <= files[1])
    assert resident_bytes(pid) - memory < 40 * MIB
    async with client() as session, session.get(f"{server.url}/load") as answer:
        assert (await answer.json())["server_load"] == 0


def test_as_many_files_may_be_open_as_the_machine_allows(start_server: StartServer) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    try:
        server = start_server()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    (line,) = [line.split() for line in limits.splitlines() if line.startswith("Max open files")]
    assert line[3] == line[4]


def test_an_idle_server_leaves_the_processor_alone(start_server: StartServer) -> None:
    server = start_server()
    server.client().completions.create(model="tiny", prompt="Return", max_tokens=2)
    time.sleep(1)  # what a request leaves to do
    processes = (server.process.pid, server.engine_pid())
    before, woken, begun = sum(map(cpu_seconds, processes)), sum(map(wakes, processes)), time.monotonic()
    time.sleep(10)  # what is measured is a rate
    seconds = time.monotonic() - begun
    woken, used = sum(map(wakes, processes)) - woken, sum(map(cpu_seconds, processes)) - before
    # What a wake takes is the machine's: 0.3 ms where idle processors stay warm, 2.4 where they do not.
    assert woken < 40 * seconds, f"{woken / seconds:.0f} wakes a second while idle"
    assert used < 0.1 * seconds, f"{100 * used / seconds:.1f}% of a core while idle"
    until(lambda: " tok/s, generation " in server.log)  # of the ten seconds with the request
