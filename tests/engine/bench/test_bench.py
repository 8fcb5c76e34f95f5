"""`quire-engine bench` as people run it: against a real server, servers that fail, and the engine alone."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from quire_engine.bench.command import run
from tests.engine.server.conftest import Server, launch

VLLM_NAMES = {
    *("date", "endpoint_type", "model_id", "tokenizer_id", "num_prompts", "request_rate", "burstiness"),
    *("max_concurrency", "duration", "completed", "failed", "total_input_tokens", "total_output_tokens"),
    *("request_throughput", "request_goodput", "output_throughput", "total_token_throughput"),
    *("input_lens", "output_lens", "ttfts", "itls", "generated_texts", "errors"),
    *("max_output_tokens_per_s", "max_concurrent_requests"),
    *(f"{kind}_{metric}_ms" for kind in ("mean", "median", "std", "p99") for metric in ("ttft", "tpot", "itl")),
}
SHORT = ("--random-input-len=12", "--random-output-len=8", "--disable-tqdm")


@pytest.fixture(scope="module")
def server(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = launch(tmp_path_factory.mktemp("server"), tiny_model_dir, "--served-model-name", "tiny")
    started.wait_until_ready()
    yield started
    started.stop()


@dataclass
class Result:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


Bench = Callable[..., Result]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Bench:
    """Runs `quire-engine bench` with arguments, in this process: most of a new one's time would be imports."""

    def once(*arguments: str) -> Result:
        try:
            status = run(arguments)
        except SystemExit as ended:  # argparse's
            status = int(str(ended.code))
        said = capsys.readouterr()
        return Result(status, said.out, said.err)

    return once


@pytest.fixture
def serve(bench: Bench, server: Server) -> Bench:
    """Runs `quire-engine bench serve` with short requests against the server."""
    return lambda *arguments: bench("serve", f"--port={server.port}", *SHORT, *arguments)


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_what_it_counts_is_what_the_server_counts(
    server: Server, serve: Bench, tiny_model_dir: Path, tmp_path: Path, backend: str
) -> None:
    file, plot = tmp_path / "result.json", tmp_path / "plot.svg"
    before = server.metric("vllm:generation_tokens_total")
    result = serve(
        f"--tokenizer={tiny_model_dir}",
        f"--backend={backend}",
        "--num-prompts=12",
        "--max-concurrency=3",
        f"--result={file}",
        f"--plot={plot}",
    )
    assert result.returncode == 0, result.stderr
    assert "Output tokens per second" in result.stdout
    found = json.loads(file.read_text())
    assert found.keys() >= VLLM_NAMES
    assert (found["completed"], found["failed"], found["max_concurrent_requests"]) == (12, 0, 3)
    assert found["output_lens"] == [8] * 12
    assert all(len(gaps) < 8 for gaps in found["itls"])
    # and the request that was tried before the load, which had one token
    assert server.metric("vllm:generation_tokens_total") - before == 12 * 8 + 1
    assert plot.read_text().startswith("<svg")


def test_requests_wait_for_their_time(serve: Bench, tiny_model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    result = serve(
        f"--tokenizer={tiny_model_dir}",
        "--num-prompts=10",
        "--request-rate=5",
        f"--result={file}",
        "--goodput=ttft:60000",
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(file.read_text())
    # ten requests at five a second: no machine can be done sooner
    assert found["duration"] >= 2
    assert found["request_goodput"] == found["request_throughput"]


def test_what_is_wrong_is_said_before_the_load(serve: Bench, tiny_model_dir: Path) -> None:
    tokenizer = f"--tokenizer={tiny_model_dir}"
    wrong = {
        ("--port=1",): "is a server running there?",
        ("--model=other",): "--model other is not served there: tiny is",
        ("--tokenizer=/nowhere",): "the directory /nowhere does not exist",
        (tokenizer, "--random-output-len=100000000"): "max_tokens",
        (tokenizer, '--extra-body={"top_p": 7}'): "top_p",
        (tokenizer, "--dataset-name=sharegpt"): "name a file",
        (tokenizer, "--percentile-metrics=speed"): "speed is not measured",
        (tokenizer, "--goodput=fast"): "write METRIC:MILLISECONDS",
    }
    for arguments, said in wrong.items():
        result = serve("--num-prompts=2", *arguments)
        assert result.returncode in (1, 2)
        assert said in result.stderr
        assert "Traceback" not in result.stderr


class Breaking(BaseHTTPRequestHandler):
    """A server that breaks off every answer but the first."""

    answers = 0

    def do_GET(self) -> None:
        self._send(json.dumps({"data": [{"id": "m"}]}).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        Breaking.answers += 1
        event = b'data: {"choices": [{"text": "a"}]}\n\n'
        self._send(event + (b"data: [DONE]\n\n" if Breaking.answers == 1 else b""))

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_answers_that_break_off_are_counted_and_the_exit_status_tells(bench: Bench, tiny_model_dir: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Breaking) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        result = bench(
            "serve", f"--port={http.server_port}", f"--tokenizer={tiny_model_dir}", "--num-prompts=3", *SHORT
        )
        http.shutdown()
    assert result.returncode == 1
    assert "3 of 3 requests failed, the first with: ValueError: the connection broke off" in result.stderr


def test_the_engine_alone_is_measured(bench: Bench, tiny_model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    model, output = f"--model={tiny_model_dir}", f"--output-json={file}"
    result = bench("throughput", model, output, *SHORT[:2], "--num-prompts=5", "--seed=3")
    assert result.returncode == 0, result.stderr
    found = json.loads(file.read_text())
    assert (found["num_requests"], found["total_output_tokens"]) == (5, 40)
    assert found["tokens_per_second"] == pytest.approx(found["total_num_tokens"] / found["elapsed_time"])
    result = bench(
        "latency",
        model,
        output,
        "--input-len=8",
        "--output-len=4",
        "--batch-size=2",
        "--num-iters=3",
        "--num-iters-warmup=1",
    )
    assert result.returncode == 0, result.stderr
    assert len(json.loads(file.read_text())["latencies"]) == 3


def test_files_of_prompts_are_asked_to_their_end(
    bench: Bench, serve: Bench, tiny_model_dir: Path, tmp_path: Path
) -> None:
    conversations, prompts, file = tmp_path / "sharegpt.json", tmp_path / "prompts.jsonl", tmp_path / "result.json"
    said = [{"from": "human", "value": "What is a class? " * 3}, {"from": "gpt", "value": "It makes objects. " * 3}]
    conversations.write_text(json.dumps([{"conversations": said}]))
    prompts.write_text(json.dumps({"prompt": "What is a class?", "output_tokens": 6}) + "\n")
    tokenizer = f"--tokenizer={tiny_model_dir}"
    for name, path in (("sharegpt", conversations), ("custom", prompts)):
        asked = (f"--dataset-name={name}", f"--dataset-path={path}", "--num-prompts=3", f"--result={file}")
        result = serve(tokenizer, *asked)
        assert result.returncode == 0, result.stderr
        found = json.loads(file.read_text())
        assert (found["completed"], found["failed"]) == (3, 0)
        assert min(found["output_lens"]) > 0
    result = bench("throughput", f"--model={tiny_model_dir}", f"--dataset={conversations}", "--num-prompts=3")
    assert result.returncode == 0, result.stderr
    assert "3 requests, " in result.stdout


def test_the_command_line_says_what_is_wrong_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quire_engine.cli", "bench", "throughput", f"--model={tmp_path / 'nothing'}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert str(tmp_path / "nothing") in result.stderr
    assert "Traceback" not in result.stderr
