"""What pods that are none of ours cost the operator: its watches ask the API server for labelled ones alone.

`python -m benchmarks.operator_foreign_pods [N]` measures, on an API server of its own with some LLMServices: the
operator's memory, the processor's time that it takes, and how long an edit takes to reach its Deployment; with no other
pod there, beside N pods of others, and while these change all the time.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.machine import cpu_seconds, describe_machine, percentile, resident_mib, write_result
from benchmarks.operator_bench import Bench, bench, wait_for
from benchmarks.operator_scale import edit
from quire_operator.kubeapi.resources import PODS

OTHERS = "others"
_REST_SECONDS = 30.0


def main() -> None:
    """Measure, print a table and write results/operator_foreign_pods.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pods", type=int, nargs="?", default=5000)
    parser.add_argument("--services", type=int, default=100)
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--changes-per-second", type=float, default=50.0)
    options = parser.parse_args()
    machine = describe_machine()
    names = [f"llm-{number}" for number in range(options.services)]
    with bench() as running:
        running.create(names)
        figures = {"services": options.services, "alone": measure(running, names, options.edits, 0)}
        print(f"creating {options.pods} pods", flush=True)
        running.api.make_namespace(OTHERS)
        create_pods(running, options.pods)
        figures["foreign_pods"] = options.pods
        figures["beside_them"] = measure(running, names, options.edits, 67)
        with changing(running, options.pods, options.changes_per_second) as changes:
            begun, before = time.monotonic(), changes[0]
            figures["while_they_change"] = measure(running, names, options.edits, 133)
            figures["changes_per_second"] = round((changes[0] - before) / (time.monotonic() - begun))
    print(*(f"{name:<24} {value}" for name, value in figures.items()), sep="\n")
    print(f"written to {write_result('operator_foreign_pods', figures, machine)}")


def measure(running: Bench, names: list[str], edits: int, offset: int) -> dict[str, Any]:
    """Start an operator, leave it alone for a while, edit, and end it. `offset` tells one time's edits from others'."""
    operator = running.start_operator()
    operator.wait_until_leading()
    wait_for("every service has its children and status", lambda: running.served() == len(names), 300)
    operator.wait_until_idle(120)
    begun = cpu_seconds(operator.process.pid)
    time.sleep(_REST_SECONDS)
    at_rest = cpu_seconds(operator.process.pid) - begun
    memory = resident_mib(operator.process.pid)
    latencies = [edit(running, names[number * 7 % len(names)], offset + number) for number in range(edits)]
    operator.end()
    return {
        "memory_mib": round(memory),
        "processor_ms_per_second_at_rest": round(at_rest * 1000 / _REST_SECONDS, 1),
        "edit_to_deployment_p50_ms": round(percentile(latencies, 0.5) * 1000),
        "edit_to_deployment_p99_ms": round(percentile(latencies, 0.99) * 1000),
    }


def create_pods(running: Bench, count: int) -> None:
    """Pods as others have them, eight at a time."""

    def one(number: int) -> None:
        env = [{"name": f"VARIABLE_{index}", "value": "some text of usual length"} for index in range(20)]
        container = {"name": "app", "image": "registry.example/app:1", "env": env}
        labels = {"app.kubernetes.io/name": "app", "app.kubernetes.io/instance": f"app-{number % 50}"}
        metadata = {"name": f"pod-{number}", "namespace": OTHERS, "labels": labels}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}
        running.api.create(PODS, body)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(count)))


@contextlib.contextmanager
def changing(running: Bench, count: int, rate: float) -> Iterator[list[int]]:
    """Statuses of the pods change, so many a second where the machine can do it; yields how many have."""
    done, changes = threading.Event(), [0]

    def change() -> None:
        for number in itertools.count():
            if done.wait(1 / rate):
                return
            message = f"change {number}"
            running.api.set_status(PODS, OTHERS, f"pod-{number % count}", {"message": message})
            changes[0] += 1

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield changes
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    main()
