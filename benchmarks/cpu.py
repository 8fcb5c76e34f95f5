"""Quire beside vLLM's CPU build, llama.cpp and transformers' generate: the same model and requests, in turns.

`python -m benchmarks.cpu` starts each contender, with a thread on each core of this machine, and puts each load on one
after the other, `--repeats` times. `--vllm PATH/vllm` names the program of a virtual environment that has vLLM's CPU
build, `--llama-cpp PATH/python` one that has llama-cpp-python and gguf; they are left out otherwise. Servers are sent
requests by `bench serve`; llama.cpp and generate take each round of streams as one batch, without HTTP, and are left
out where lengths differ or a prefix is shared. `--int8` has a second Quire beside the first, with weights in int8.
`--short` measures less: one stream, 16, and a shared prefix. On a machine that others use too threads wait for each
other: there `--threads 1` compares better what the work itself costs. What is written are medians, with the least and
the greatest, processor time, and how far Quire is ahead.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.cpu_contenders import (
    Batched,
    Case,
    Contender,
    Conversations,
    Served,
    generate,
    llama_cpp,
    memory_mib,
    own_environment,
    processor_seconds,
    quire,
    stop,
    vllm,
)
from benchmarks.cpu_model import SHAPES, checkpoint, weight_bytes
from benchmarks.machine import describe_machine, write_result
from quire_engine.bench.samples import Sample

CASES: dict[str, Case | Conversations] = {
    "one stream": Case(prompts=3, streams=1, input_len=128, output_len=128),
    "16 streams": Case(prompts=16, streams=16, input_len=128, output_len=128),
    "64 streams": Case(prompts=64, streams=64, input_len=128, output_len=128),
    "long prompt": Case(prompts=3, streams=1, input_len=4096, output_len=16),
    "conversations": Conversations(prompts=32, streams=16),
    "shared prefix": Case(prompts=32, streams=8, input_len=64, output_len=64, prefix=1024),
}
SHORT = ("one stream", "16 streams", "shared prefix")
FIGURES = ("output_throughput", "median_ttft_ms", "median_tpot_ms", "cpu_ms_per_token")
_READ = """
import time, torch
from quire_engine.kernels.large_pages import zeros  # whose pages take the least time to be looked up
ones, best = zeros((1 << 28,), torch.float32).fill_(1.0), 0.0
for _ in range(8):
    begun = time.perf_counter()
    ones.sum()
    best = max(best, (1 << 30) / (time.perf_counter() - begun))
print(best)
"""


def main() -> None:
    """Measure, print a table and write results/cpu.json, or the file that --name names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", type=Path, help="the vllm program")
    parser.add_argument("--llama-cpp", type=Path, help="a python that has llama-cpp-python and gguf")
    parser.add_argument("--size", default="303m", choices=SHAPES, help="of the model")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of every contender")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every contender")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--int8", action="store_true", help="Quire with weights in int8 too")
    parser.add_argument("--short", action="store_true", help="one stream, 16, and a shared prefix")
    parser.add_argument("--cases", help="some of them, with commas between")
    parser.add_argument("--without-transformers", action="store_true")
    parser.add_argument("--name", default="cpu", help="of the file in results/ (default: cpu)")
    options = parser.parse_args()
    names = options.cases.split(",") if options.cases else SHORT if options.short else tuple(CASES)
    model, machine = checkpoint(options.size), describe_machine()
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    machine["read_gb_per_s"] = round(read_bandwidth(options.threads) / 1e9, 1)
    with tempfile.TemporaryDirectory(prefix="quire-bench-") as folder, contextlib.ExitStack() as running:
        contenders: dict[str, Served | Batched] = {}
        for name, start in starts(options, model, Path(folder)):
            contenders[name] = start()
            running.callback(stop, contenders[name])
            print(f"{name}: first token after {contenders[name].start_seconds:.1f} s", flush=True)
        figures: dict[str, Any] = {
            "first_token_after_s": {name: round(one.start_seconds, 2) for name, one in contenders.items()}
        }
        figures["idle_cpu_share"] = idle_shares(contenders)
        runs: dict[tuple[str, str], list[dict[str, float]]] = {}
        for repeat in range(options.repeats):
            for name in names:
                case = CASES[name]
                samples = case.requests(tokenizer, seed=100 * repeat + list(CASES).index(name))
                for who, contender in list(contenders.items()):
                    if isinstance(contender, Batched) and (isinstance(case, Conversations) or case.prefix):
                        continue  # a batch is of one length, and shares nothing
                    try:
                        found = measured(contender, samples, case.streams)
                    except (RuntimeError, OSError) as error:
                        if who.startswith("quire") or not has_ended(contender.process):
                            raise
                        print(f"{who} ended, and is left out from here on: {error}", flush=True)
                        del contenders[who]
                        continue
                    runs.setdefault((who, name), []).append(found)
                    print(f"{name}, {who}: " + ", ".join(f"{k} {found[k]:.1f}" for k in FIGURES), flush=True)
        figures["memory_mib"] = {name: round(memory_mib(one.process.pid)) for name, one in contenders.items()}
    figures["ended_meanwhile"] = [who for who in figures["first_token_after_s"] if who not in contenders]
    for name in names:
        figures[name] = {who: summary(runs[who, name]) for who in contenders if (who, name) in runs}
    streamed = figures.get("one stream")
    if streamed is not None:
        for who in contenders:
            rate = 1000 / streamed[who]["median_tpot_ms"]["median"]
            read = weight_bytes(model, options.size) * (2 if options.dtype == "float32" else 1)
            share = rate * read / 1e9 / machine["read_gb_per_s"]
            streamed[who]["share_of_read_bandwidth"] = round(share, 3)
    print(table(figures, names))
    print(f"written to {write_result(options.name, figures, machine, module='cpu')}")


def starts(options: argparse.Namespace, model: Path, folder: Path) -> Iterator[tuple[str, Any]]:
    """The contenders, by name, and what starts each."""
    yield "quire", lambda: quire(model, options.dtype, options.threads, folder)
    if options.int8:
        yield "quire int8", lambda: quire(model, options.dtype, options.threads, folder, int8=True)
    if options.vllm is not None:
        yield "vllm", lambda: vllm(options.vllm, model, options.dtype, options.threads, folder)
    if options.llama_cpp is not None:
        for weights in ("bf16", "q8_0"):
            name = f"llama.cpp {weights}"
            yield name, lambda weights=weights: llama_cpp(options.llama_cpp, model, weights, options.threads)
    if not options.without_transformers:
        yield "transformers", lambda: generate(model, options.dtype, options.threads)


def measured(contender: Contender, samples: list[Sample], streams: int) -> dict[str, float]:
    """The figures of one run, with the processor time that the contender used, its client's left out."""
    before = processor_seconds(contender.process.pid)
    found = contender.run(samples, streams)
    used = processor_seconds(contender.process.pid) - before
    return {**found, "cpu_ms_per_token": used * 1000 / sum(one.output_len for one in samples)}


def has_ended(process: subprocess.Popen[Any]) -> bool:
    """Whether it has, or does within seconds."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    return process.poll() is not None


def idle_shares(contenders: Mapping[str, Contender]) -> dict[str, float]:
    """Of one core, while nothing is asked of any: over ten seconds."""
    before = {name: processor_seconds(one.process.pid) for name, one in contenders.items()}
    time.sleep(10)
    return {
        name: round((processor_seconds(one.process.pid) - before[name]) / 10, 4) for name, one in contenders.items()
    }


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Of each figure the median, and where there are several runs the least and the greatest."""
    return {
        name: {
            "median": round(statistics.median(values), 2),
            **({"least": round(min(values), 2), "greatest": round(max(values), 2)} if len(values) > 1 else {}),
        }
        for name in FIGURES
        if (values := [run[name] for run in runs])
    }


def table(figures: dict[str, Any], names: tuple[str, ...]) -> str:
    """The medians as text, each rival's with how far Quire is ahead of it."""
    heads = ("tokens/s", "TTFT ms", "TPOT ms", "CPU ms/token")
    lines = [f"{'':<28}" + "".join(f"{head:>16}" for head in heads)]
    for name in names:
        ours = figures[name]["quire"]
        for who, found in figures[name].items():
            cells = []
            for figure in FIGURES:
                value, mine = found[figure]["median"], ours[figure]["median"]
                ahead = mine / value if figure == "output_throughput" else value / mine if mine else 0.0
                cells.append(f"{value:9.1f}" + (f" ({ahead:.2f})" if who != "quire" else " " * 7))
            lines.append(f"{name + ', ' + who:<28}" + "".join(f"{cell:>16}" for cell in cells))
    for name in ("first_token_after_s", "idle_cpu_share", "memory_mib"):
        lines.append(f"{name:<28}" + "   ".join(f"{who} {value}" for who, value in figures[name].items()))
    return "\n".join(lines)


def read_bandwidth(threads: int) -> float:
    """Bytes a second that so many threads together read from memory, the best of eight."""
    found = subprocess.run(
        [sys.executable, "-c", _READ], env=own_environment(threads), check=True, capture_output=True, text=True
    )
    return float(found.stdout)


if __name__ == "__main__":
    main()
