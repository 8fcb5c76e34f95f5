"""Where the time of decode steps goes on this machine's CPUs: the engine's core alone, without a server.

`python -m benchmarks.cpu_steps` decodes with 1 and with 16 streams, each with 1 thread and with one on every core, and
prints for each the least, the median and the processor time of a step, and what its parts take as `--profile-steps`
has them. Requests have prompts of 128 tokens. `--against DIR` runs the same with the sources of another working tree,
in turns: other work on the machine then meets both alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.cpu_model import checkpoint
from benchmarks.machine import REPOSITORY, describe_machine, write_result

PROMPT = 128
CASES = ((1, 1), (16, 1), (1, 2), (16, 2))  # streams and threads


def main() -> None:
    """Measure, print and write results/cpu_steps.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--cases", help="some of them, as STREAMSxTHREADS with commas between")
    parser.add_argument("--quantization", help="of the weights: int8, or none")
    parser.add_argument("--against", type=Path, help="another working tree, with its library of kernels built")
    parser.add_argument("--within", nargs=2, type=int, metavar=("STREAMS", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.within:
        streams, steps = options.within
        print(json.dumps(decode(checkpoint(), streams, steps, options.quantization)))
        return
    cases = [tuple(map(int, c.split("x"))) for c in options.cases.split(",")] if options.cases else CASES
    trees = {"this": REPOSITORY} | ({"other": options.against} if options.against else {})
    machine, figures = describe_machine(), {}
    for streams, threads in cases:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
        for _ in range(options.repeats):
            for name, tree in trees.items():
                runs[name].append(run_in(tree, streams, threads, options.steps, options.quantization))
        for name, found in runs.items():
            best = min(found, key=lambda one: float(one["median_ms"]))
            figures[f"{streams} streams, {threads} threads, {name} tree"] = best
            heads = "  ".join(f"{key} {value}" for key, value in best.items() if key != "parts")
            print(f"{streams} streams, {threads} threads, {name} tree: {heads}\n{best['parts']}", flush=True)
    print(f"written to {write_result('cpu_steps', figures, machine)}")


def run_in(tree: Path, streams: int, threads: int, steps: int, quantization: str | None) -> dict[str, Any]:
    """In a process of its own: threads are set before torch is loaded."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": f"{tree / 'engine'}:{REPOSITORY}"}
    command = [sys.executable, "-m", "benchmarks.cpu_steps", "--within", str(streams), str(steps)]
    command += ["--quantization", quantization] if quantization else []
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def decode(model: Path, streams: int, steps: int, quantization: str | None) -> dict[str, Any]:
    """Milliseconds of `steps` decode steps, half of them untimed by part, since that takes time itself."""
    from quire_engine import SamplingParams
    from quire_engine.config import EngineConfig
    from quire_engine.core.messages import EngineRequest
    from quire_engine.core.step_profile import StepProfile
    from quire_engine.engine import build_engine
    from quire_engine.execution.model_runner import ModelRunner

    config = EngineConfig(
        model=str(model), device="cpu", dtype="bfloat16", max_model_len=1024, quantization=quantization
    )
    core, _ = build_engine(config)
    for i in range(streams):
        prompt = [(7919 * i + 31 * j) % 31_000 + 300 for j in range(PROMPT)]
        params = SamplingParams(temperature=0.0, max_tokens=2 * steps + 8, ignore_eos=True)
        core.add_request(EngineRequest(f"r{i}", prompt, params))
    while core.stats().num_running < streams or core.stats().num_scheduled_tokens != streams:
        core.step()
    core.step()
    walls, begun = [], time.process_time()
    for _ in range(steps):
        started = time.perf_counter()
        core.step()
        walls.append((time.perf_counter() - started) * 1000)
    processor = (time.process_time() - begun) * 1000 / steps
    core.profile = StepProfile(steps + 1)
    runner = core._executor
    assert isinstance(runner, ModelRunner)
    runner.time_by(core.profile)
    for _ in range(steps):
        core.step()
    return {
        "median_ms": round(statistics.median(walls), 2),
        "least_ms": round(min(walls), 2),
        "processor_ms": round(processor, 2),
        "parts": core.profile.table(),
    }


if __name__ == "__main__":
    main()
