"""The engines that are measured: servers, and programs that take batches, each in processes of its own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoTokenizer

from benchmarks.machine import REPOSITORY, cpu_seconds, descendants
from quire_engine.bench.samples import RandomLengths, Sample, random_samples
from tests.engine.server.conftest import free_port

START_SECONDS = 600


@dataclass(frozen=True)
class Case:
    """A load: `prompts` requests, `streams` at once, each of `prefix` shared tokens and `input_len` of its own."""

    prompts: int
    streams: int
    input_len: int
    output_len: int
    prefix: int = 0

    def requests(self, tokenizer: Any, seed: int) -> list[Sample]:
        """Of random tokens."""
        lengths = RandomLengths(input_len=self.input_len, output_len=self.output_len, prefix_len=self.prefix)
        return random_samples(tokenizer, self.prompts, lengths, seed)


@dataclass(frozen=True)
class Conversations:
    """A load: `prompts` requests, `streams` at once, of random tokens and of lengths as people's.

    Lengths are drawn log-normally, with about the means of ShareGPT that vLLM's paper gives: 161 tokens in, 338 out
    (https://arxiv.org/abs/2309.06180, figure 11).
    """

    prompts: int
    streams: int

    def requests(self, tokenizer: Any, seed: int) -> list[Sample]:
        chance = random.Random(seed)
        lengths = [
            RandomLengths(input_len=_drawn(chance, 4.4, 1.2), output_len=_drawn(chance, 5.5, 0.8))
            for _ in range(self.prompts)
        ]
        return [random_samples(tokenizer, 1, one, chance.randrange(1 << 30))[0] for one in lengths]


def _drawn(chance: random.Random, mu: float, sigma: float) -> int:
    return min(1024, max(4, round(chance.lognormvariate(mu, sigma))))


class Contender(Protocol):
    """An engine with the model. Its processes and their children are its own."""

    process: subprocess.Popen[Any]

    def run(self, samples: Sequence[Sample], streams: int) -> dict[str, float]:
        """Put the load on it: output_throughput in tokens/s, median_ttft_ms and median_tpot_ms."""
        ...


class Served:
    """A server of OpenAI's API. It is up, and has answered with a first token after `start_seconds`."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], model: Path, folder: Path):
        self._model, self._folder = model, folder
        self._url = f"http://127.0.0.1:{(port := free_port())}"
        started = time.monotonic()
        with (folder / f"{name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, f"--port={port}", "--host=127.0.0.1", "--served-model-name=m"],
                env=dict(environment),
                stdout=log,
                stderr=log,
            )
        try:
            while not self._answers():
                if self.process.poll() is not None or time.monotonic() - started > START_SECONDS:
                    said = (folder / f"{name}.log").read_text(errors="replace")[-3000:]
                    raise RuntimeError(f"{name} did not start:\n{said}")
                time.sleep(0.05)
        except BaseException:
            stop(self)
            raise
        self.start_seconds = time.monotonic() - started

    def run(self, samples: Sequence[Sample], streams: int) -> dict[str, float]:
        asked, result = self._folder / "requests.jsonl", self._folder / "result.json"
        lines = (json.dumps({"prompt": one.prompt, "output_tokens": one.output_len}) for one in samples)
        asked.write_text("\n".join(lines))
        command = [sys.executable, "-m", "quire_engine.cli", "bench", "serve", f"--base-url={self._url}", "--model=m"]
        command += [f"--tokenizer={self._model}", "--dataset-name=custom", f"--dataset-path={asked}", "--ignore-eos"]
        command += [f"--num-prompts={len(samples)}", f"--max-concurrency={streams}", "--disable-tqdm"]
        command += [f"--result={result}"]
        subprocess.run(command, env=own_environment(1), check=True, stdout=subprocess.DEVNULL, timeout=1800)
        found: dict[str, float] = json.loads(result.read_text())
        return found

    def _answers(self) -> bool:
        body = json.dumps({"model": "m", "prompt": "a", "max_tokens": 1}).encode()
        asked = urllib.request.Request(f"{self._url}/v1/completions", body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


class Batched:
    """A program that takes prompts in rounds, each one batch, as JSON on its standard input.

    It is up, and has answered with a first token after `start_seconds`.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], model: Path) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        started = time.monotonic()
        self.process = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self._answer(streams=1, output_len=1, prompts=[[1]])
        except BaseException:
            stop(self)
            raise
        self.start_seconds = time.monotonic() - started

    def run(self, samples: Sequence[Sample], streams: int) -> dict[str, float]:
        """As `Contender`, of requests that are all of one length, as a batch wants them."""
        length, output_len = samples[0].prompt_len, samples[0].output_len
        ids = [self._tokenizer.encode(one.prompt)[:length] for one in samples]
        return self._answer(streams, output_len, ids)

    def _answer(self, streams: int, output_len: int, prompts: list[list[int]]) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([streams, output_len, prompts]), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended: see what it said above")
        found: dict[str, float] = json.loads(line)
        return found


def quire(model: Path, dtype: str, threads: int, folder: Path, *, int8: bool = False) -> Served:
    """Ours, with `int8` by weights that it quantizes as it loads them."""
    name = "quire-int8" if int8 else "quire"
    command = [
        sys.executable,
        "-m",
        "quire_engine.cli",
        "serve",
        str(model),
        f"--dtype={dtype}",
        "--max-model-len=8192",
        *(["--quantization=int8"] if int8 else []),
    ]
    return Served(name, command, own_environment(threads) | {"QUIRE_RUN_DIR": str(folder)}, model, folder)


def vllm(program: Path, model: Path, dtype: str, threads: int, folder: Path) -> Served:
    """vLLM's CPU build with every thread for its model: by default it keeps one of the cores for its server.

    Its cache is empty, as in a new pod.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "OMP_NUM_THREADS")} | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CACHE_ROOT": str(folder / "vllm-cache"),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "VLLM_NO_USAGE_STATS": "1",
    }
    # Triton and its like look for their compilers beside the program.
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    command = [str(program), "serve", str(model), f"--dtype={dtype}", "--max-model-len=8192"]
    return Served("vllm", command, environment, model, folder)


def generate(model: Path, dtype: str, threads: int) -> Batched:
    """transformers' generate."""
    command = [sys.executable, "-m", "benchmarks.cpu_generate", str(model), dtype]
    return Batched(command, own_environment(threads), model)


def llama_cpp(python: Path, model: Path, weights: str, threads: int) -> Batched:
    """llama.cpp, by a Python that has llama-cpp-python and gguf. `weights` is bf16 or q8_0.

    Its form of the model is kept beside the model; where it is not there yet, writing it counts as starting.
    """
    file = model.with_name(f"{model.name}.{weights}.gguf")
    program = str(REPOSITORY / "benchmarks" / "cpu_llama_cpp.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return Batched([str(python), program, str(model), weights, str(threads), str(file)], environment, model)


def own_environment(threads: int) -> dict[str, str]:
    """What this repository's programs run with."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"OMP_NUM_THREADS": str(threads)}
    return environment | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "engine"), str(REPOSITORY)])}


def stop(contender: Contender) -> None:
    """End it and what it started."""
    process = contender.process
    started = family(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pid in started[1:]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def family(pid: int) -> list[int]:
    """A process and its descendants, as far as they live."""
    try:
        return [pid, *descendants(pid)]
    except OSError:
        return [pid]


def processor_seconds(pid: int) -> float:
    """Seconds of processor time that a process and its descendants have used."""
    return sum(cpu_seconds(one) for one in family(pid))


def memory_mib(pid: int) -> float:
    """MiB that a process and its descendants hold; what they share counts once."""
    lines = [line for one in family(pid) for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
