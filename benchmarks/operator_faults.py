"""What a cluster does to the operator: a leader killed, an API server that restarts, and a day of comings and goings.

`python -m benchmarks.operator_faults` measures, on an API server of its own with 100 LLMServices: seconds until another
replica has done what the killed leader left; seconds until an edit made while the API server restarted has reached its
Deployment; and the operator's memory over as many creations, edits and deletions as a busy cluster sees in a day.
"""

from __future__ import annotations

import argparse
import functools
import time
from typing import Any

from benchmarks.machine import describe_machine, resident_mib, write_result
from benchmarks.operator_bench import NAMESPACE, Bench, bench, wait_for
from quire_operator.kubeapi.resources import CHILDREN, DEPLOYMENTS, LLMSERVICES

_SERVICES = 100
_SECONDS = 120.0


def main() -> None:
    """Measure, print a table and write results/operator_faults.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--churn", type=int, default=3000, help="LLMServices that come, change and go")
    options = parser.parse_args()
    machine = describe_machine()
    with bench() as running:
        running.create([f"llm-{number}" for number in range(_SERVICES)])
        figures = {
            "takeover_seconds": [round(takeover(running, number), 1) for number in range(options.repeats)],
            "restart_seconds": [round(restart(running, number), 1) for number in range(options.repeats)],
            "churn": churn(running, options.churn),
        }
    for name, value in figures.items():
        print(f"{name:<20} {value}")
    print(f"written to {write_result('operator_faults', figures, machine)}")


def takeover(running: Bench, number: int) -> float:
    """Kill the leader of two replicas; seconds until the other has served a service created at that moment."""
    leader = running.start_operator()
    leader.wait_until_leading()
    wait_for("all are served", lambda: running.served() >= _SERVICES, _SECONDS)
    standby = running.start_operator()
    wait_for("a standby", lambda: standby.says("waiting for the lease"), _SECONDS)
    time.sleep(3.0)  # it has seen the Lease renewed
    begun = time.monotonic()
    leader.kill()
    name = f"orphan-{number}"
    running.create([name])
    wait_for("the standby serves", lambda: running.api.find(DEPLOYMENTS, NAMESPACE, name) is not None, _SECONDS)
    seconds = time.monotonic() - begun
    print(f"taken over after {seconds:.1f} s", flush=True)
    standby.stop()
    return seconds


def restart(running: Bench, number: int) -> float:
    """Restart the API server; seconds from its being ready until an edit made at once has reached its Deployment."""
    operator = running.start_operator()
    operator.wait_until_leading()
    operator.wait_until_idle(_SECONDS)
    running.plane.restart_apiserver()
    begun = time.monotonic()
    count = 300 + number
    running.api.patch(LLMSERVICES, NAMESPACE, "llm-0", {"spec": {"engine": {"maxNumSeqs": count}}})
    wait_for("the edit is there", lambda: f"--max-num-seqs={count}" in arguments(running, "llm-0"), _SECONDS)
    seconds = time.monotonic() - begun
    print(f"an edit got through {seconds:.1f} s after the restart", flush=True)
    operator.stop()
    return seconds


def arguments(running: Bench, name: str) -> list[str]:
    """Of the engine's container."""
    deployment = running.api.get(DEPLOYMENTS, NAMESPACE, name)
    return list(deployment["spec"]["template"]["spec"]["containers"][0]["args"])


def churn(running: Bench, count: int) -> dict[str, Any]:
    """Create, edit and delete `count` LLMServices, 20 at a time; MiB at the start, and after each tenth."""
    operator = running.start_operator()
    operator.wait_until_leading()
    operator.wait_until_idle(_SECONDS)
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
            if item["metadata"].get("labels", {}).get("serving.quire.dev/llmservice") in names:
                running.api.delete(resource, NAMESPACE, item["metadata"]["name"])


if __name__ == "__main__":
    main()
