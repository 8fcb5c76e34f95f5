"""What carrying tokens over HTTP costs, beside vLLM: tokens for each second of processor time of the server process.

`python -m benchmarks.http_layer --vllm PATH/vllm` starts both servers with the same tiny model and random weights, and
puts the same load on one after the other, `--repeats` times: streams of chat completions, all at once. What is counted
is the processor time of the process that speaks HTTP, which in both is apart from the engine's, so that neither how
fast the engines are nor what else the machine does says much in it. A client reads bytes and looks at them later.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx

from benchmarks.machine import cpu_seconds, descendants, describe_machine, write_result
from quire_engine.bench.client import CHAT, Target, session
from quire_engine.bench.samples import RandomLengths, Sample, random_samples
from quire_engine.text.tokenizer import load_tokenizer
from quire_engine.tiny.training import tiny_model
from tests.engine.server.conftest import free_port, launch, until

PROMPT_TOKENS = 32
WARM_UP_TOKENS = 32
START_SECONDS = 600  # vLLM compiles the model at its first start
# Both cores for its engine too, and memory for no more than such a model needs.
VLLM_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
MODEL_FLAGS = ("--load-format=dummy", "--dtype=float32", "--served-model-name=m", "--max-num-seqs=256")


@dataclass(frozen=True)
class Contender:
    """A server that runs: where, and the process that speaks HTTP. The engine is in those below it."""

    url: str
    pid: int

    def cpu(self) -> tuple[float, float]:
        """Seconds of processor time so far: of HTTP, and of the engine."""
        return cpu_seconds(self.pid), sum(map(cpu_seconds, descendants(self.pid)))


def main() -> None:
    """Measure, print a table and write results/http_layer.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", type=Path, default=shutil.which("vllm"), help="the vllm program (default: of PATH)")
    parser.add_argument("--streams", type=int, default=64, help="at once (default: 64)")
    parser.add_argument("--tokens", type=int, default=400, help="of each stream (default: 400)")
    parser.add_argument("--repeats", type=int, default=3, help="loads on each server (default: 3)")
    options = parser.parse_args()
    if options.vllm is None:
        parser.error("vllm is not in PATH: name it with --vllm")
    machine = describe_machine()
    runs: dict[str, list[dict[str, float]]] = {"quire": [], "vllm": []}
    with ExitStack() as at_end:
        folder = Path(at_end.enter_context(tempfile.TemporaryDirectory(prefix="quire-bench-")))
        tiny_model(folder / "tiny")
        tokenizer = load_tokenizer(str(folder / "tiny"))
        contenders = {
            "quire": at_end.enter_context(quire(folder)),
            "vllm": at_end.enter_context(vllm(options.vllm, folder)),
        }
        for turn in range(options.repeats):
            lengths = RandomLengths(input_len=PROMPT_TOKENS, output_len=options.tokens)
            samples = random_samples(tokenizer, options.streams, lengths, seed=turn)
            for name, contender in contenders.items():
                runs[name].append(asyncio.run(measure(contender, samples)))
                print(f"{name:<6}", "  ".join(f"{key} {value:,.1f}" for key, value in runs[name][-1].items()))
    figures: dict[str, Any] = {
        name: {key: round(statistics.median(run[key] for run in of_one), 2) for key in of_one[0]}
        for name, of_one in runs.items()
    }
    ours, theirs = (figures[name]["tokens_per_http_cpu_second"] for name in ("quire", "vllm"))
    figures["ratio"] = round(ours / theirs, 2)
    figures["runs"] = runs
    for key in figures["quire"]:
        print(f"{key:<28} quire {figures['quire'][key]:12,.1f}   vllm {figures['vllm'][key]:12,.1f}")
    print(f"tokens a second per core, ours to theirs: {figures['ratio']}")
    print(f"written to {write_result('http_layer', figures, machine)}")


@contextmanager
def quire(folder: Path) -> Iterator[Contender]:
    """Our server with the model in `folder`."""
    server = launch(folder / "quire", folder / "tiny", *MODEL_FLAGS)
    try:
        server.wait_until_ready()
        yield Contender(server.url, server.process.pid)
    finally:
        server.stop()


@contextmanager
def vllm(program: Path, folder: Path) -> Iterator[Contender]:
    """vLLM's server with the model in `folder`, and its own environment of Python."""
    port, log = free_port(), folder / "vllm.log"
    command = [str(program), "serve", str(folder / "tiny"), "--host=127.0.0.1", f"--port={port}", *MODEL_FLAGS]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | VLLM_ENVIRONMENT
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=folder)
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: process.poll() is not None or is_healthy(url), START_SECONDS)
        if process.poll() is not None:
            raise SystemExit(f"vLLM did not start:\n{log.read_text()[-2000:]}")
        yield Contender(url, process.pid)
    finally:
        process.terminate()
        process.wait(60)


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


async def measure(contender: Contender, samples: list[Sample]) -> dict[str, float]:
    """The figures of one load, after a small one."""
    async with session() as client:
        await load(client, contender, [Sample(one.prompt, one.prompt_len, WARM_UP_TOKENS) for one in samples])
        http_before, engine_before = contender.cpu()
        begun = time.perf_counter()
        answers = await load(client, contender, samples)
        seconds = time.perf_counter() - begun
        http_after, engine_after = contender.cpu()
    counts = [count(answer) for answer in answers]
    tokens = sum(of_usage for of_usage, _ in counts)
    assert tokens == sum(sample.output_len for sample in samples), "answers are shorter than was asked"
    http, engine = http_after - http_before, engine_after - engine_before
    return {
        "tokens_per_http_cpu_second": tokens / http,
        "http_cpu_us_per_token": http / tokens * 1e6,
        "engine_cpu_us_per_token": engine / tokens * 1e6,
        "events_per_token": sum(events for _, events in counts) / tokens,
        "tokens_per_second": tokens / seconds,
    }


async def load(client: aiohttp.ClientSession, contender: Contender, samples: list[Sample]) -> list[bytes]:
    """All answers, as they came over the wire, to samples that are sent at once."""
    # By chance, as the likeliest token of random weights is the same one again and again.
    target = Target(contender.url, "m", CHAT, extra={"ignore_eos": True, "temperature": 1.0})

    async def one(sample: Sample) -> bytes:
        async with client.post(target.base_url + target.endpoint, json=target.body(sample)) as answer:
            body = await answer.read()
            assert answer.status == 200, body
            return body

    return await asyncio.gather(*map(one, samples))


def count(answer: bytes) -> tuple[int, int]:
    """The tokens of one answer by its usage, and the events that carried them."""
    lines = [line.removeprefix(b"data: ") for line in answer.splitlines() if line.startswith(b"data: ")]
    assert lines[-1] == b"[DONE]", "the answer broke off"
    events = [json.loads(line) for line in lines[:-1]]
    return events[-1]["usage"]["completion_tokens"], sum(len(event["choices"]) > 0 for event in events)


if __name__ == "__main__":
    main()
