"""Whether `quire-engine bench serve` counts what vLLM's own benchmark counts: both on one server, in turns.

`python -m benchmarks.bench_parity --vllm PATH/vllm MODEL` starts Quire's server with the model in the directory MODEL
and runs both clients against it with the same settings, `--repeats` times each, in turns: at a rate that leaves the
processor idle for most of the time, and all at once, where on few cores the clients' own work slows the server down.
Each turn has a seed of its own, and the client that was first in one is second in the next. The two draw other times
from a seed, and how many requests meet another one decides about times to first token; so gaps are nearly even at the
rate, and none meets another. What is written are the medians of the turns, how far ours are from vLLM's, and how far
each client's turns lie apart: a difference below that is chance.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import describe_machine, write_result
from tests.engine.server.conftest import Server, launch

NAMES: tuple[str, ...] = (
    "output_throughput",
    "request_throughput",
    "mean_ttft_ms",
    "median_ttft_ms",
    "mean_tpot_ms",
    "median_tpot_ms",
)
NAMES += ("mean_itl_ms", "total_input_tokens", "total_output_tokens")
SETTINGS = ("--random-input-len=128", "--random-output-len=64", "--max-concurrency=8", "--disable-tqdm")
LOADS = {
    "at_a_rate": ("--request-rate=3", "--burstiness=100", "--num-prompts=60"),
    "all_at_once": ("--num-prompts=300",),
}


def main() -> None:
    """Measure, print a table and write results/bench_parity.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="directory of the model to serve")
    parser.add_argument("--vllm", type=Path, required=True, help="the vllm program")
    parser.add_argument("--repeats", type=int, default=6)
    options = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="quire-bench-") as folder:
        # what is found in a cache depends on who asks first
        server = launch(Path(folder) / "server", options.model, "--served-model-name=m", "--no-enable-prefix-caching")
        try:
            server.wait_until_ready()
            clients = {"quire": [sys.executable, "-m", "quire_engine.cli"], "vllm": [str(options.vllm)]}
            runs: dict[tuple[str, str], list[dict[str, float]]] = {(c, load): [] for load in LOADS for c in clients}
            for turn in range(options.repeats):
                for load, asked in LOADS.items():
                    for client in reversed(clients) if turn % 2 else clients:
                        file, seeded = Path(folder) / "result.json", (*asked, f"--seed={turn + 1}")
                        runs[client, load].append(run(clients[client], seeded, server, options.model, file))
        finally:
            server.stop()
    figures = {}
    for load in LOADS:
        for name in NAMES:
            turns = {client: [one[name] for one in runs[client, load]] for client in clients}
            ours, theirs = (statistics.median(turns[client]) for client in ("quire", "vllm"))
            ratio, spread = ours / theirs, max((max(own) - min(own)) / statistics.median(own) for own in turns.values())
            found = {"quire": round(ours, 3), "vllm": round(theirs, 3), "ratio": round(ratio, 4)}
            figures[f"{load}.{name}"] = found | {"spread": round(spread, 4)}
            print(
                f"{load:<12} {name:<22} quire {ours:10.2f}   vllm {theirs:10.2f}   ratio {ratio:.3f}   "
                f"turns within {spread:.1%}"
            )
    print(f"written to {write_result('bench_parity', figures, machine)}")


def run(program: list[str], load: tuple[str, ...], server: Server, model: Path, file: Path) -> dict[str, float]:
    """One client's figures."""
    command = [*program, "bench", "serve", f"--base-url={server.url}", "--model=m", f"--tokenizer={model}"]
    command += ["--backend=vllm", "--dataset-name=random", "--ignore-eos", *SETTINGS, *load]
    command += [f"--result-filename={file}"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if program[-1].endswith("vllm"):
        command += ["--save-result", "--temperature=0"]
        environment.pop("PYTHONPATH", None)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=600)
    found: dict[str, float] = json.loads(file.read_text())
    return found


if __name__ == "__main__":
    main()
