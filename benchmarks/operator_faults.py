"""What a cluster does to the operator: faults of all kinds, and a leader that is killed.

`python -m benchmarks.operator_faults` measures, on an API server of its own with 200 LLMServices at rest:

- for each fault of `fault_cases`: how often it happened; what the operator writes when nothing else happens; how long
  edits that are made one after another during the fault take to reach their Deployments; how long after its end all is
  as it should be, when 20 services were edited at the last moment; what was written in all; how many objects were made
  anew, and how many of services that nobody edited were written to. Both of the latter must be 0.
- seconds until another replica has done what a killed leader left.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from typing import Any

from benchmarks.fault_cases import CASES, Case
from benchmarks.machine import describe_machine, percentile, write_result
from benchmarks.operator_bench import NAMESPACE, Bench, bench, settle, wait_for, writes
from benchmarks.operator_scale import edit
from quire_operator.kubeapi.resources import DEPLOYMENTS, LLMSERVICES
from tests.operator.objects import identities, versions

_SECONDS = 120.0
_REST_SECONDS = 8.0
_AT_THE_LAST_MOMENT = 20


def main() -> None:
    """Measure, print a table and write results/operator_faults.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, default=200, help="at least 40")
    parser.add_argument("--edits", type=int, default=10, help="one after another during each fault, at most 20")
    parser.add_argument("--takeovers", type=int, default=3)
    options = parser.parse_args()
    machine = describe_machine()
    with bench() as running:
        names = [f"llm-{number}" for number in range(options.services)]
        running.create(names)
        figures: dict[str, Any] = {"services": options.services, "faults": {}}
        for number, (name, case) in enumerate(CASES.items()):
            figures["faults"][name] = befallen(running, case, names, options.edits, number)
            print(f"{name:<36} {figures['faults'][name]}", flush=True)
        figures["takeovers"] = [takeover(running, names, number) for number in range(options.takeovers)]
    print(f"written to {write_result('operator_faults', figures, machine)}")


def befallen(
    running: Bench,
    start: Callable[[Bench], contextlib.AbstractContextManager[Case]],
    names: list[str],
    edits: int,
    number: int,
) -> dict[str, Any]:
    """What one fault, the `number`-th of all, does to an operator whose services are at rest."""
    edited, last = names[:edits], names[-_AT_THE_LAST_MOMENT:]
    with start(running) as case:
        settle(running, case.operator, names)
        before, others = identities(running.api, NAMESPACE), untouched(running, {*edited, *last})
        first = writes(case.operator)
        with case.fault() as happened:
            time.sleep(_REST_SECONDS)
            at_rest = happened()
        case.operator.wait_until_idle(_SECONDS)
        second = writes(case.operator)
        with case.fault() as happened:
            seconds = [edit(running, name, number, limit=_SECONDS) for name in edited]
            spec = {"engine": {"maxNumSeqs": 300 + number}}
            for name in last:
                running.api.patch(LLMSERVICES, NAMESPACE, name, {"spec": spec})
            during_edits = happened()
        wanted = f"--max-num-seqs={300 + number}"
        converged = wait_for("all is as it should be", lambda: running.observed(last, wanted), _SECONDS)
        case.operator.wait_until_idle(_SECONDS)
        third = writes(case.operator)
        after = untouched(running, {*edited, *last})
        figures = {
            "faults_at_rest": at_rest,
            "faults_during_edits": during_edits,
            "writes_without_an_edit": second - first,
            "first_edit_seconds": round(seconds[0], 2),
            "edit_p50_seconds": round(percentile(seconds, 0.5), 2),
            "edit_max_seconds": round(max(seconds), 2),
            "converged_after_seconds": round(converged, 1),
            "edits": edits + len(last),
            "writes": third - second,
            "made_anew": len(identities(running.api, NAMESPACE) ^ before),
            "of_others_written_to": len(after.items() ^ others.items()),
        }
        case.operator.stop()
    return figures


def untouched(running: Bench, but: set[str]) -> dict[tuple[str, str, str], str]:
    """Versions of all objects of services other than these."""
    return {key: version for key, version in versions(running.api, NAMESPACE).items() if key[0] not in but}


def takeover(running: Bench, names: list[str], number: int) -> dict[str, Any]:
    """Kill the leader of two replicas; seconds until the other has served a service created at that moment."""
    leader = running.start_operator()
    settle(running, leader, names)
    standby = running.start_operator()
    wait_for("a standby", lambda: standby.says("waiting for the lease"), _SECONDS)
    time.sleep(3.0)  # it has seen the Lease renewed
    name = f"orphan-{number}"
    before, others = identities(running.api, NAMESPACE), untouched(running, {name})
    begun = time.monotonic()
    leader.kill()
    running.create([name])
    wait_for("the standby serves", lambda: running.api.find(DEPLOYMENTS, NAMESPACE, name) is not None, _SECONDS)
    seconds = time.monotonic() - begun
    print(f"taken over after {seconds:.1f} s", flush=True)
    standby.wait_until_idle(_SECONDS)
    figures = {
        "seconds": round(seconds, 1),
        "made_anew": len(before - identities(running.api, NAMESPACE)),
        "of_others_written_to": len(untouched(running, {name}).items() ^ others.items()),
    }
    standby.stop()
    return figures


if __name__ == "__main__":
    main()
