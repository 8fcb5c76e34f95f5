"""Ranks behind a real server: what ends them, and that nothing is left of them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from quire_engine.config import EngineConfig
from quire_engine.distributed.follower import Follower
from quire_engine.distributed.leader import Leader
from quire_engine.startup_error import StartupError
from tests.engine.server.conftest import Server, StartServer, environment, free_port, start_server, until

__all__ = ["start_server"]

# Two runs of these tests on one machine get in each other's way with a probability of 1 in 256.
LEADER, FOLLOWER = (f"10.213.{os.getpid() % 256}.{host}" for host in (1, 2))


def children(pid: int) -> list[int]:
    """Those that any of its threads started."""
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}/exe").exists()


class Stream:
    """One answer that streams in the background."""

    def __init__(self, url: str, max_tokens: int) -> None:
        self.lines: list[str] = []
        self._body = {"model": "tiny", "prompt": "Return", "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
        self._thread = threading.Thread(target=self._read, args=(url,))
        self._thread.start()

    def _read(self, url: str) -> None:
        with httpx.stream("POST", f"{url}/v1/completions", json=self._body, timeout=60) as answer:
            for line in answer.iter_lines():
                self.lines.append(line)

    def join(self) -> list[str]:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return [line for line in self.lines if line]


def test_a_killed_rank_ends_all_with_the_cause(start_server: StartServer) -> None:
    server = start_server("--tensor-parallel-size=2")
    engine = server.engine_pid()
    (rank,) = children(engine)
    stream = Stream(server.url, 2000)
    until(lambda: bool(stream.lines))
    os.kill(rank, signal.SIGKILL)
    assert server.process.wait(5) == 1  # in which time it is promised, six times what it takes
    until(lambda: gone(engine) and gone(rank), 5)
    assert "the engine has failed" in stream.join()[-2]
    assert server.termination_message.startswith("OutOfMemory: rank 1 ended by signal 9")
    assert server.log.strip().splitlines()[-1].endswith(server.termination_message)


def test_a_signal_to_all_processes_finishes_what_runs_and_leaves_nothing(start_server: StartServer) -> None:
    server = start_server("--pipeline-parallel-size=2")
    engine = server.engine_pid()
    ranks = children(engine)
    stream = Stream(server.url, 200)
    until(lambda: bool(stream.lines))
    for pid in (server.process.pid, engine, *ranks):
        os.kill(pid, signal.SIGTERM)
    assert server.process.wait(60) == 0
    assert stream.join()[-1] == "data: [DONE]"
    until(lambda: all(map(gone, [engine, *ranks])), 5)


@pytest.fixture
def second_namespace() -> Iterator[list[str]]:
    """What runs a command in a network namespace of its own, with one wire to ours."""
    name = f"quire-{os.getpid()}"
    inside = ["ip", "netns", "exec", name]
    here, there = f"q{os.getpid()}a", f"q{os.getpid()}b"
    commands = [
        ["ip", "netns", "add", name],
        ["ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", name],
        ["ip", "addr", "add", f"{LEADER}/30", "dev", here],
        ["ip", "link", "set", here, "up"],
        [*inside, "ip", "addr", "add", f"{FOLLOWER}/30", "dev", there],
        [*inside, "ip", "link", "set", there, "up"],
        [*inside, "ip", "link", "set", "lo", "up"],
    ]
    try:
        for command in commands:
            subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        # It takes root, which neither every developer nor every container has.
        pytest.skip(f"no network namespaces can be made here: {error}")
    yield inside
    subprocess.run(
        ["ip", "link", "del", here], check=True
    )  # the namespace's end, which takes it along, is not waited for
    subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def two_nodes(second_namespace: list[str], tiny_model_dir: Path, tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """Node 0 in our network namespace and node 1 in another, a rank on each. Both are ready."""
    port, nodes = free_port(), list[Server]()
    for rank, inside in enumerate(([], second_namespace)):
        run_dir = tmp_path / str(rank)
        run_dir.mkdir()
        (run_dir / "termination-log").touch()
        flags = ["--nnodes=2", f"--node-rank={rank}", f"--master-addr={LEADER}", "--tensor-parallel-size=2"]
        command = [sys.executable, "-m", "quire_engine.cli", "serve", str(tiny_model_dir), "--served-model-name=tiny"]
        with (run_dir / "log").open("wb") as log:
            process = subprocess.Popen(
                [*inside, *command, f"--port={port}", *flags], stdout=log, stderr=log, env=environment(run_dir)
            )
        nodes.append(Server(process, port, run_dir))
    try:
        until(lambda: health(LEADER, port) == 200 or any(n.process.poll() is not None for n in nodes), 120)
        assert health(LEADER, port) == 200, nodes[0].log + nodes[1].log
        yield nodes[0], nodes[1]
    finally:
        for node in nodes:
            node.process.kill()
            node.process.wait()


def health(host: str, port: int) -> int:
    try:
        return httpx.get(f"http://{host}:{port}/health").status_code
    except httpx.TransportError:
        return 0


def test_two_nodes_serve_together_and_end_together(two_nodes: tuple[Server, Server]) -> None:
    leader, follower = two_nodes
    url = f"http://{LEADER}:{leader.port}"
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 8, "temperature": 0}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30).json()
    assert answer["choices"][0]["message"]["content"]
    assert health(FOLLOWER, follower.port) == 200
    assert httpx.post(f"http://{FOLLOWER}:{follower.port}/ping").json() == {"status": "ok"}
    assert httpx.get(f"http://{FOLLOWER}:{follower.port}/v1/models").status_code == 404

    # A node that is asked to stop goes on for the leader, until that has finished what runs.
    stream = Stream(url, 200)
    until(lambda: bool(stream.lines))
    follower.process.send_signal(signal.SIGTERM)
    leader.process.send_signal(signal.SIGTERM)
    assert stream.join()[-1] == "data: [DONE]"
    assert [node.process.wait(30) for node in two_nodes] == [0, 0]


@pytest.mark.slow
def test_a_node_whose_leader_goes_away_ends_with_the_cause(two_nodes: tuple[Server, Server]) -> None:
    leader, follower = two_nodes
    leader.process.kill()
    assert follower.process.wait(15) == 1
    assert f"EngineFailed: node 0 at {LEADER} went away" in follower.termination_message


def test_both_ends_of_a_wire_that_is_cut_give_up_with_the_cause(two_nodes: tuple[Server, Server]) -> None:
    """No connection is closed by anybody: neither hears of the other again."""
    leader, follower = two_nodes
    engines = [children(node.process.pid)[0] for node in two_nodes]
    subprocess.run(["ip", "link", "set", f"q{os.getpid()}a", "down"], check=True)
    # Within 5 s, and what it takes two servers to end on a busy machine. Those that answer nobody are given 10.
    assert [node.process.wait(9) for node in two_nodes] == [1, 1]
    assert leader.termination_message == "EngineFailed: rank 1 on node 1 went away"
    assert follower.termination_message.startswith(f"EngineFailed: node 0 at {LEADER} went away")
    until(lambda: all(map(gone, engines)), 5)


@pytest.mark.slow
def test_a_rank_that_does_nothing_for_longer_than_that_is_waited_for(two_nodes: tuple[Server, Server]) -> None:
    """All of its threads stand still: no step, and nothing while loading, stops more of them."""
    leader, follower = two_nodes
    (engine,) = children(follower.process.pid)
    stream = Stream(f"http://{LEADER}:{leader.port}", 500)
    until(lambda: bool(stream.lines))
    os.kill(engine, signal.SIGSTOP)
    time.sleep(6)
    os.kill(engine, signal.SIGCONT)
    assert stream.join()[-1] == "data: [DONE]"
    assert [node.process.poll() for node in two_nodes] == [None, None]


def test_a_flag_that_differs_between_nodes_is_named() -> None:
    flags: dict[str, Any] = {"pipeline_parallel_size": 2, "nnodes": 2, "master_addr": "127.0.0.1"}
    port = free_port()
    leader = Leader(EngineConfig(model="m", master_port=port, block_size=16, **flags))
    other = EngineConfig(model="m", master_port=port, block_size=32, node_rank=1, **flags)
    with pytest.raises(StartupError, match="InvalidFlag: --block-size is 32 on node 1 and 16 on node 0"):
        Follower(other, 1, "127.0.0.1", port, lambda cause: None)
    leader.close()
    gc.collect()  # a follower that left its sockets open would wait here for ever
