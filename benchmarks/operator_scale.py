"""Many LLMServices from cold, at rest, and one edited among them.

`python -m benchmarks.operator_scale [N]` measures, on an API server of its own: seconds from the operator's start until
each of N services has its children and its status; memory; calls to the API at rest; and how long one edit takes to
reach its Deployment while the others are there.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from benchmarks.machine import describe_machine, percentile, resident_mib, write_result
from benchmarks.operator_bench import NAMESPACE, Bench, bench, calls, until_shown, wait_for
from quire_operator.kubeapi.resources import LLMSERVICES
from tests.operator.operator_process import OperatorProcess


def main() -> None:
    """Measure, print a table and write results/operator_scale.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("services", type=int, nargs="?", default=1000)
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--rest-seconds", type=float, default=120.0)
    options = parser.parse_args()
    machine = describe_machine()
    with bench() as running:
        figures = measure(running, options.services, options.edits, options.rest_seconds)
    for name, value in figures.items():
        print(f"{name:<40} {value}")
    print(f"written to {write_result('operator_scale', figures, machine)}")


def measure(running: Bench, count: int, edits: int, rest_seconds: float) -> dict[str, Any]:
    """All figures, in the order in which a cluster meets them."""
    names = [f"llm-{number}" for number in range(count)]
    print(f"creating {count} LLMServices", flush=True)
    running.create(names)
    print("starting the operator", flush=True)
    begun = time.monotonic()
    operator = running.start_operator()
    operator.wait_until_leading()
    wait_for("every service has its children and status", lambda: running.served() == count, 600)
    cold = time.monotonic() - begun
    operator.wait_until_idle(300)
    memory = resident_mib(operator.process.pid)
    print(f"cold start {cold:.1f} s, {memory:.0f} MiB; now {rest_seconds:.0f} s of rest", flush=True)
    rest = at_rest(operator, rest_seconds)
    print(f"{edits} edits", flush=True)
    latencies = [edit(running, names[number * 7 % count], number) for number in range(edits)]
    operator.wait_until_idle(120)
    return {
        "services": count,
        "cold_start_seconds": round(cold, 1),
        "memory_mib": round(memory),
        "memory_after_edits_mib": round(resident_mib(operator.process.pid)),
        "calls_per_hour_at_rest": rest,
        "edit_to_deployment_p50_ms": round(percentile(latencies, 0.5) * 1000),
        "edit_to_deployment_p99_ms": round(percentile(latencies, 0.99) * 1000),
        "edit_to_deployment_max_ms": round(max(latencies) * 1000),
    }


def at_rest(operator: OperatorProcess, seconds: float) -> dict[str, float]:
    """Calls an hour while nothing happens, by verb and resource; renewals of watches and of the Lease among them."""
    before = calls(operator)
    time.sleep(seconds)
    after = calls(operator)
    hourly = {key: round((after[key] - before.get(key, 0)) * 3600 / seconds) for key in after}
    return {key: value for key, value in sorted(hourly.items()) if value}


def edit(running: Bench, name: str, number: int, limit: float = 30) -> float:
    """Seconds, at most `limit`, from an edit of the spec until a watch of the Deployment shows it."""
    count = number % 200 + 10
    patch = {"spec": {"engine": {"maxNumSeqs": count}}}
    return until_shown(
        running.api,
        name,
        f"--max-num-seqs={count}",
        lambda: running.api.patch(LLMSERVICES, NAMESPACE, name, patch),
        limit,
    )


if __name__ == "__main__":
    main()
