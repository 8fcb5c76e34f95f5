"""Starting, going away, and dying, with real processes and signals."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tests.engine.server import conftest
from tests.engine.server.conftest import Server, StartServer, environment, free_port, launch, until

LONG = {"model": "tiny", "prompt": "Return", "max_tokens": 400, "temperature": 0, "extra_body": {"ignore_eos": True}}


class Streams:
    """`count` streams that run in the background until they end."""

    def __init__(self, server: Server, count: int, max_tokens: int = 400) -> None:
        self.texts = [""] * count
        self.errors: list[Exception] = []
        self.finished: list[str | None] = [None] * count
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(server, count, max_tokens))
        self._thread.start()

    def _run(self, server: Server, count: int, max_tokens: int) -> None:
        async def all_of_them() -> None:
            async with server.async_client() as client:
                await asyncio.gather(*(self._one(client, i, max_tokens) for i in range(count)))

        self._loop.run_until_complete(all_of_them())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())

    async def _one(self, client: openai.AsyncOpenAI, i: int, max_tokens: int) -> None:
        try:
            async for chunk in await client.completions.create(**{**LONG, "max_tokens": max_tokens}, stream=True):
                self.texts[i] += chunk.choices[0].text
                self.finished[i] = chunk.choices[0].finish_reason
        except openai.APIError as error:
            self.errors.append(error)

    def all_begun(self) -> bool:
        return all(self.texts)

    def join(self) -> None:
        self._thread.join(120)
        assert not self._thread.is_alive()


def test_sigterm_finishes_running_streams_refuses_new_ones_and_exits_0(start_server: StartServer) -> None:
    server = start_server("--disable-log-stats")
    streams = Streams(server, 8)
    until(streams.all_begun)
    kept_alive = httpx.Client()
    assert kept_alive.get(f"{server.url}/health").status_code == 200
    server.process.send_signal(signal.SIGTERM)
    until(lambda: kept_alive.get(f"{server.url}/health").status_code == 503, 2)
    refused = httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "x"})
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert refused.headers["connection"] == "close"
    streams.join()
    assert server.process.wait(10) == 0
    assert streams.errors == []
    assert streams.finished == ["length"] * 8


def test_an_idle_server_ends_at_once_on_sigterm_and_leaves_nothing(start_server: StartServer) -> None:
    server = start_server()
    engine = server.engine_pid()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 0
    assert not Path(f"/proc/{engine}/exe").exists()
    assert not list(server.run_dir.glob("*.sock"))


def test_requests_left_when_the_time_is_up_get_an_error_and_no_cut_stream(start_server: StartServer) -> None:
    server = start_server("--shutdown-timeout=0.5")
    streams = Streams(server, 3, max_tokens=2000)
    until(streams.all_begun)
    server.process.send_signal(signal.SIGTERM)
    streams.join()
    assert server.process.wait(10) == 0
    assert len(streams.errors) == 3
    assert all("stopped before this request was finished" in str(e) for e in streams.errors)


def test_a_second_sigterm_does_not_wait(start_server: StartServer) -> None:
    server = start_server("--shutdown-timeout=600")
    streams = Streams(server, 2, max_tokens=2000)
    until(streams.all_begun)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: server.health() == 503, 2)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(15) == 0
    streams.join()
    assert len(streams.errors) == 2


def test_drain_turns_unready_yet_serves_and_says_connection_close(start_server: StartServer) -> None:
    server = start_server("--endpoints-lag=2")
    client = httpx.Client()
    body = {"model": "tiny", "prompt": "Return", "max_tokens": 4}
    assert "connection" not in client.post(f"{server.url}/v1/completions", json=body).headers
    draining = threading.Thread(target=server.drain)
    draining.start()
    until(lambda: server.health() == 503, 10)
    served = client.post(f"{server.url}/v1/completions", json=body)
    assert served.status_code == 200
    assert served.headers["connection"] == "close"
    draining.join()
    assert server.process.poll() is None


def test_drain_leaves_running_streams_alone_and_closes_their_connections_after(start_server: StartServer) -> None:
    server = start_server("--endpoints-lag=0.5")
    body = {"model": "tiny", "prompt": "Return", "max_tokens": 500, "ignore_eos": True, "stream": True}
    with httpx.Client(timeout=60) as client, client.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert server.drain().returncode == 0
        rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        stream = answer.extensions["network_stream"]
        raw = stream.get_extra_info("socket")
        if raw.fileno() != -1:  # else the client has seen the end already, and closed its side
            raw.settimeout(5)
            assert raw.recv(1) == b""  # closed by the server, though it never said so in the head


def test_a_hundred_streams_outlive_the_drain_and_the_sigterm_of_a_pod_that_goes(start_server: StartServer) -> None:
    server = start_server("--endpoints-lag=1")
    streams = Streams(server, 100, max_tokens=200)
    until(streams.all_begun, 90)
    with socket.create_connection(("127.0.0.1", server.port)) as idle:
        idle.sendall(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += (part := idle.recv(4096))
            assert part, answer
        assert b"200 OK" in answer
        assert server.drain().returncode == 0
        idle.settimeout(10)
        assert idle.recv(4096) == b""  # closed, as nothing was asked on it
    assert server.health() == 503
    server.process.send_signal(signal.SIGTERM)
    streams.join()
    assert server.process.wait(15) == 0
    assert streams.errors == []
    assert streams.finished == ["length"] * 100
    assert len({*streams.texts}) == 1
    assert "Traceback" not in server.log


def test_drain_of_an_idle_server_returns_before_the_lag(start_server: StartServer) -> None:
    server = start_server("--endpoints-lag=600")
    assert server.drain().returncode == 0


def test_drain_without_a_server_says_so(start_server: StartServer) -> None:
    server = start_server()
    server.stop()
    answer = server.drain()
    assert answer.returncode == 1
    assert "no server listens on port" in answer.stderr


def test_a_drain_that_takes_too_long_says_so(start_server: StartServer) -> None:
    server = start_server("--endpoints-lag=600")
    server.client().completions.create(model="tiny", prompt="Return", max_tokens=2)
    answer = server.drain("--timeout=1")
    assert answer.returncode == 1
    assert f"the server on port {server.port} did not finish draining within 1 s" in answer.stderr


@pytest.mark.parametrize("stream", [True, False])
def test_each_kind_of_answer_ends_with_an_error_when_the_engine_dies(start_server: StartServer, stream: bool) -> None:
    server = start_server()
    length = {"ignore_eos": True, "stream": stream}
    asked: dict[str, dict[str, object]] = {
        "/v1/completions": {**length, "prompt": "Return", "max_tokens": 2000},
        "/v1/chat/completions": {**length, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2000},
        "/v1/responses": {**length, "input": "Hi", "max_output_tokens": 2000},
    }
    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        answers = [pool.submit(httpx.post, server.url + path, json=body, timeout=60) for path, body in asked.items()]
        until(lambda: server.metric("vllm:generation_tokens_total") > 0)
        until(lambda: server.metric("vllm:num_requests_running") == len(asked))
        os.kill(server.engine_pid(), signal.SIGKILL)
        for path, answer in zip(asked, (answer.result() for answer in answers), strict=True):
            assert "the engine has failed: OutOfMemory" in answer.text, path
            assert answer.status_code == (200 if stream else 500)
            if not stream:
                assert answer.json()["error"]["code"] == 500
            elif path == "/v1/responses":
                last = json.loads(answer.text.strip().splitlines()[-1].removeprefix("data: "))
                assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
            else:
                *_, error, done = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
                assert (json.loads(error)["error"]["code"], done) == (500, "[DONE]")
    assert server.process.wait(15) == 1


def test_a_killed_engine_ends_the_server_with_the_cause(start_server: StartServer) -> None:
    server = start_server()
    streams = Streams(server, 3, max_tokens=2000)
    until(streams.all_begun)
    os.kill(server.engine_pid(), signal.SIGKILL)
    assert server.process.wait(15) == 1
    streams.join()
    assert len(streams.errors) == 3
    assert all("engine has failed" in str(e) for e in streams.errors)
    assert "OutOfMemory: the engine process ended by signal 9" in server.termination_message
    assert server.log.strip().splitlines()[-1].endswith(server.termination_message)


def test_an_engine_that_dies_during_a_drain_ends_both_with_the_cause(start_server: StartServer) -> None:
    server = start_server("--endpoints-lag=60")
    server.client().completions.create(model="tiny", prompt="Return", max_tokens=2)
    drained: list[subprocess.CompletedProcess[str]] = []
    draining = threading.Thread(target=lambda: drained.append(server.drain()))
    draining.start()
    until(lambda: server.health() == 503, 10)
    os.kill(server.engine_pid(), signal.SIGKILL)
    assert server.process.wait(15) == 1
    draining.join()
    assert drained[0].returncode == 1
    assert "ended while draining" in drained[0].stderr
    assert "Traceback" not in server.log


def test_a_killed_server_takes_its_engine_along(start_server: StartServer) -> None:
    server = start_server()
    engine = server.engine_pid()
    server.process.kill()
    server.process.wait()
    until(lambda: not Path(f"/proc/{engine}/exe").exists(), 5)


def test_a_hanging_engine_turns_health_503_and_back(start_server: StartServer) -> None:
    server = start_server("--stall-timeout=1.5")
    engine = server.engine_pid()
    os.kill(engine, signal.SIGSTOP)
    try:
        until(lambda: server.health() == 503, 10)
        assert "stalled" in httpx.get(f"{server.url}/health").json()["status"]
    finally:
        os.kill(engine, signal.SIGCONT)
    until(lambda: server.health() == 200, 10)


HANG = """
import os, pathlib, time
from quire_engine.core.loop import EngineCore
step, hanging = EngineCore.step, pathlib.Path(os.environ["TEST_HANGS_WHILE"])
def step_that_hangs(core):
    while hanging.exists():
        time.sleep(0.05)
    return step(core)
EngineCore.step = step_that_hangs
"""


HOLD = """
import os, pathlib, time
from quire_engine.distributed import launch
die_with_parent, held = launch.die_with_parent, pathlib.Path(os.environ["TEST_HANGS_WHILE"])
def hold(pid):
    die_with_parent(pid)
    while held.exists():
        time.sleep(0.05)
launch.die_with_parent = hold
"""


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this file exists, no engine goes on that begins to start here."""
    return hooked(HOLD, tmp_path, monkeypatch)


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this file exists, no step of an engine ends that is started here."""
    return hooked(HANG, tmp_path, monkeypatch)


def hooked(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that `code` looks for, which every process runs that is started here."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(code)
    file, paths = tmp_path / "hangs", os.pathsep.join((str(tmp_path / "hook"), os.environ.get("PYTHONPATH", "")))
    variables = {"TEST_HANGS_WHILE": str(file), "PYTHONPATH": paths}
    monkeypatch.setattr(conftest, "environment", lambda run_dir: environment(run_dir) | variables)
    return file


def test_a_step_that_hangs_turns_health_503_and_its_end_lets_streams_go_on(
    start_server: StartServer, hanging: Path
) -> None:
    server = start_server("--stall-timeout=1.5")
    streams = Streams(server, 3)
    until(streams.all_begun)
    hanging.touch()
    until(lambda: server.health() == 503, 10)
    assert "stalled" in httpx.get(f"{server.url}/health").json()["status"]
    assert streams.finished == [None] * 3
    hanging.unlink()
    until(lambda: server.health() == 200, 10)
    streams.join()
    assert streams.finished == ["length"] * 3


def test_a_step_that_hangs_for_ever_keeps_no_process_from_its_end(start_server: StartServer, hanging: Path) -> None:
    server = start_server("--shutdown-timeout=1")
    engine = server.engine_pid()
    streams = Streams(server, 3)
    until(streams.all_begun)
    hanging.touch()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    streams.join()
    assert len(streams.errors) == 3
    assert not Path(f"/proc/{engine}/exe").exists()


def test_a_long_step_leaves_health_alone(start_server: StartServer) -> None:
    server = start_server("--stall-timeout=30")
    engine = server.engine_pid()
    os.kill(engine, signal.SIGSTOP)
    time.sleep(2.5)
    assert server.health() == 200
    os.kill(engine, signal.SIGCONT)


def test_before_it_is_ready_it_answers_503_and_says_what_it_does(start_server: StartServer, held: Path) -> None:
    held.touch()
    server = start_server(wait=False)

    def health() -> httpx.Response | None:
        try:
            return httpx.get(f"{server.url}/health")
        except httpx.TransportError:
            return None

    until(lambda: health() is not None, 60)
    answer = health()
    assert answer is not None
    assert (answer.status_code, "being loaded" in answer.json()["status"]) == (503, True)
    refused = httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "x"})
    assert refused.status_code == 503
    assert "being loaded" in refused.json()["error"]["message"]
    assert refused.headers["retry-after"]
    held.unlink()
    server.wait_until_ready()
    served = httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 1})
    assert served.status_code == 200


def test_a_start_is_told_with_the_time_of_each_of_its_parts(start_server: StartServer) -> None:
    server = start_server()
    (line,) = [line for line in server.log.splitlines() if "ready after " in line]
    found = re.search(r"ready after ([\d.]+) s \((.*)\)", line)
    assert found is not None, line
    parts = {name: float(seconds) for name, seconds in re.findall(r"([\w-]+) ([\d.]+) s", found[2])}
    assert list(parts) == ["import", "device", "config", "weights", "memory", "warm-up"]
    assert parts["import"] > 0
    assert sum(parts.values()) <= float(found[1]) + 0.5, "a part of it is not longer than the whole"
    assert re.search(r"# GPU blocks: 0, # CPU blocks: [1-9]\d*$", server.log, re.MULTILINE)


def test_the_command_of_a_deployment_for_vllm_starts_it(tiny_model_dir: Path, tmp_path: Path) -> None:
    flags = ("--served-model-name=tiny", "--device=cpu")
    server = launch(tmp_path, f"--model={tiny_model_dir}", *flags, program="quire_engine.server")
    try:
        server.wait_until_ready()
        assert server.client().models.list().data[0].id == "tiny"
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("files", "reason", "says"),
    [
        (None, "ModelNotFound", "does not exist"),
        ({}, "InvalidCheckpoint", "config.json"),
        (
            {"config.json": '{"architectures": ["NoSuchModel"], "model_type": "llama"}'},
            "UnsupportedModel",
            "NoSuchModel",
        ),
        ({"config.json": "{"}, "InvalidCheckpoint", "config.json"),
    ],
)
def test_a_model_that_cannot_be_loaded_ends_it_with_one_line_that_says_why(
    start_server: StartServer, tmp_path: Path, files: dict[str, str] | None, reason: str, says: str
) -> None:
    model = tmp_path / "model"
    if files is not None:
        model.mkdir()
        for name, text in files.items():
            (model / name).write_text(text)
    server = start_server(model=model, wait=False)
    assert server.process.wait(30) == 1
    assert server.termination_message.startswith(f"{reason}: ")
    assert says in server.termination_message
    assert "\n" not in server.termination_message


def catches_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("after", [0.0, 1.0])
def test_sigterm_while_it_starts_ends_it_with_0_and_leaves_nothing(start_server: StartServer, after: float) -> None:
    server = start_server(wait=False)
    until(lambda: catches_sigterm(server.process.pid))
    time.sleep(after)  # while it imports, and while it loads
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(15) == 0, server.log
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in children), 10)
    assert not list(server.run_dir.glob("*.sock"))


def test_a_control_socket_that_cannot_be_made_ends_it_with_what_to_set(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conftest, "environment", lambda run_dir: environment(run_dir) | {"QUIRE_RUN_DIR": "/dev/null"})
    server = start_server(wait=False)
    assert server.process.wait(30) == 1
    assert "QUIRE_RUN_DIR" in server.termination_message


def test_the_finest_log_level_is_no_obstacle(start_server: StartServer) -> None:
    assert start_server("--uvicorn-log-level=trace").health() == 200


@pytest.mark.parametrize("flag", ["--max-waiting=-1", "--shutdown-timeout=nan"])
def test_a_setting_without_sense_is_refused_at_once(start_server: StartServer, flag: str) -> None:
    server = start_server(flag, wait=False)
    assert server.process.wait(10) == 2
    assert flag.split("=")[0] in server.log


def test_too_little_memory_is_refused_with_the_numbers_and_the_flag(start_server: StartServer) -> None:
    server = start_server("--kv-cache-memory-bytes=1000", wait=False)
    assert server.process.wait(30) == 1
    assert server.termination_message.startswith("InsufficientMemory: ")
    assert "--kv-cache-memory-bytes" in server.termination_message


def test_a_taken_port_is_said_before_anything_is_loaded(start_server: StartServer) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        server = start_server(port=port, wait=False)
        assert server.process.wait(30) == 1
    assert server.termination_message.startswith("AddressInUse: ")
    assert "--port" in server.termination_message


def test_a_tokenizer_or_a_template_that_cannot_be_used_is_named(start_server: StartServer, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] }}")
    server = start_server(f"--chat-template={template}", wait=False)
    assert server.process.wait(60) == 1
    assert server.termination_message.startswith(f"InvalidFlag: --chat-template {template}, line 1: ")

    (tmp_path / "empty").mkdir()
    server = start_server(f"--tokenizer={tmp_path / 'empty'}", wait=False)
    assert server.process.wait(60) == 1
    assert server.termination_message.startswith("InvalidTokenizer: ")
    assert "Traceback" not in server.log

    words = Tokenizer(WordLevel({f"word{i}": i for i in range(5000)}, unk_token="word0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "larger")
    server = start_server(f"--tokenizer={tmp_path / 'larger'}", wait=False)
    assert server.process.wait(60) == 1
    assert "larger has 5000 tokens and the model 2048: they do not belong together" in server.termination_message
    assert "Traceback" not in server.log
