"""A day of comings and goings: the operator's memory over as many LLMServices as a busy cluster sees in a day.

`python -m benchmarks.operator_churn [N]` creates, edits and deletes N of them, on an API server of its own.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

from benchmarks.machine import describe_machine, resident_mib, write_result
from benchmarks.operator_bench import NAMESPACE, Bench, bench, wait_for
from quire_operator.builders.identity import SERVICE_LABEL
from quire_operator.kubeapi.resources import CHILDREN, DEPLOYMENTS, LLMSERVICES

_SECONDS = 120.0


def main() -> None:
    """Measure, print and write results/operator_churn.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("services", type=int, nargs="?", default=3000, help="that come, change and go")
    options = parser.parse_args()
    machine = describe_machine()
    with bench() as running:
        figures = churn(running, options.services)
    print(f"written to {write_result('operator_churn', figures, machine)}")


def churn(running: Bench, count: int) -> dict[str, Any]:
    """Create, edit and delete `count` LLMServices, 20 at a time; MiB at the start, and after each tenth."""
    operator = running.start_operator()
    operator.wait_until_leading()
    operator.wait_until_idle()
    memory = [round(resident_mib(operator.process.pid))]
    batches = max(1, count // 20)
    for batch in range(batches):
        names = [f"churn-{batch}-{number}" for number in range(20)]
        running.create(names)
        wait_for("children", functools.partial(exist, running, names), _SECONDS)
        for name in names:
            running.api.patch(LLMSERVICES, NAMESPACE, name, {"spec": {"engine": {"maxNumSeqs": 9}}})
            running.api.delete(LLMSERVICES, NAMESPACE, name)
        remove_children(running, set(names))
        if (batch + 1) % max(1, batches // 10) == 0:
            memory.append(round(resident_mib(operator.process.pid)))
            print(f"{(batch + 1) * 20} came and went, {memory[-1]} MiB", flush=True)
    operator.stop()
    return {"services": batches * 20, "memory_mib": memory}


def exist(running: Bench, names: list[str]) -> bool:
    """Whether each of the services has its Deployment, the last of its children."""
    return all(running.api.find(DEPLOYMENTS, NAMESPACE, name) is not None for name in names)


def remove_children(running: Bench, names: set[str]) -> None:
    """As the garbage collector would, which does not run here."""
    for resource in CHILDREN:
        for item in running.api.list(resource, NAMESPACE):
            if item["metadata"].get("labels", {}).get(SERVICE_LABEL) in names:
                running.api.delete(resource, NAMESPACE, item["metadata"]["name"])


if __name__ == "__main__":
    main()
