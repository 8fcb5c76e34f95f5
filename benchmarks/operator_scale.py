"""Many services from cold, and edits among them: ours and KServe's manager in turns, on one API server in one run.

`python -m benchmarks.operator_scale [N]` gives each operator in its turn N services of its own, which are gone before
the next turn: ours, KServe's, and ours again, so that a machine that grew busier shows. For each turn: seconds from the
operator's start until every service has its Deployment and a status; its memory; and how long edits, made one after
another, take to reach their Deployments while the others are there. `--alone` measures ours only.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from benchmarks.machine import describe_machine, percentile, resident_mib, write_result
from benchmarks.operator_bench import NAMESPACE, Bench, bench, until_shown, wait_for
from benchmarks.rival_operator import KServe
from quire_operator.kubeapi.resources import CHILDREN, LLMSERVICES
from tests.operator.operator_process import OperatorProcess


class Contender(Protocol):
    """An operator, and services as it knows them."""

    @property
    def name(self) -> str:
        """With its version, and how it was set."""
        ...

    def create(self, names: list[str]) -> None:
        """Create services."""
        ...

    def start(self) -> int:
        """Start the operator. Returns its pid."""
        ...

    def served(self) -> int:
        """Services that have a Deployment and a status."""
        ...

    def edit(self, name: str, number: int, limit: float) -> float:
        """Seconds, at most `limit`, from an edit until a watch of the Deployment shows it."""
        ...

    def clear(self) -> None:
        """End the operator, and delete all that it made."""
        ...


class Quire:
    """Ours, with exactly the rights that are shipped."""

    name = "Quire"

    def __init__(self, running: Bench) -> None:
        self._running = running
        self._operator: OperatorProcess | None = None

    def create(self, names: list[str]) -> None:
        """Create LLMServices."""
        self._running.create(names)

    def start(self) -> int:
        """Start the operator. Returns its pid."""
        self._operator = self._running.start_operator()
        return self._operator.process.pid

    def served(self) -> int:
        """LLMServices that have a Deployment and a status."""
        return self._running.served()

    def edit(self, name: str, number: int, limit: float) -> float:
        """Seconds until the Deployment shows it."""
        return edit(self._running, name, number, limit)

    def clear(self) -> None:
        """End the operator, and delete all that it made."""
        if self._operator is not None:
            self._operator.end()
        for resource in (LLMSERVICES, *CHILDREN):
            self._running.api.request("DELETE", resource.path(NAMESPACE))


def main() -> None:
    """Measure, print each turn and write results/operator_scale.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("services", type=int, nargs="?", default=1000)
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--alone", action="store_true", help="ours only, one turn")
    options = parser.parse_args()
    machine = describe_machine()
    with bench() as running:
        ours: Callable[[], Contender] = partial(Quire, running)
        turns = [ours] if options.alone else [ours, lambda: KServe(running.plane, running.api), ours]
        figures = {
            "services": options.services,
            "turns": [measure(contender(), options.services, options.edits) for contender in turns],
        }
    print(f"written to {write_result('operator_scale', figures, machine)}")


def measure(contender: Contender, count: int, edits: int) -> dict[str, Any]:
    """One turn, in the order in which a cluster meets it."""
    names = [f"llm-{number}" for number in range(count)]
    print(f"{contender.name}: creating {count} services", flush=True)
    contender.create(names)
    load = os.getloadavg()[0]
    begun = time.monotonic()
    pid = contender.start()
    wait_for("every service has its Deployment and a status", lambda: contender.served() == count, 1800)
    cold = time.monotonic() - begun
    memory = resident_mib(pid)
    print(f"cold start {cold:.1f} s, {memory:.0f} MiB", flush=True)
    first = contender.edit(names[0], edits, 3000)  # behind all that there is still to do, and so not counted below
    print(f"the first edit came through after {first:.1f} s", flush=True)
    latencies = [contender.edit(names[number * 7 % count], number, 600) for number in range(edits)]
    figures = {
        "operator": contender.name,
        "load_before": round(load, 2),
        "cold_start_seconds": round(cold, 1),
        "first_edit_seconds": round(first, 1),
        "memory_mib": round(memory),
        "memory_after_edits_mib": round(resident_mib(pid)),
        "edit_to_deployment_p50_ms": round(percentile(latencies, 0.5) * 1000),
        "edit_to_deployment_p99_ms": round(percentile(latencies, 0.99) * 1000),
        "edit_to_deployment_max_ms": round(max(latencies) * 1000),
    }
    print(*(f"  {name:<28} {value}" for name, value in figures.items()), sep="\n", flush=True)
    contender.clear()
    return figures


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
