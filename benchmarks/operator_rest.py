"""What the operator asks of the API server when nothing happens, call by call, as the API server's audit log has it.

`python -m benchmarks.operator_rest [N]` has N LLMServices at rest on an API server of its own, and counts every call
of the operator's by verb and resource, kopf's among them, with the reason for it. A call without a reason in `_REASONS`
fails the run, as does a write of anything but the Lease.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, write_result
from benchmarks.operator_bench import bench, settle

_WATCH = (
    "the API server ends each watch after 30 to 60 minutes, and a silent one is given up after 90 s, which bookmarks "
    "prevent; it goes on from its last version, and nothing is listed"
)
_REASONS = {
    "update leases": "the leader renews its Lease every 3 s, a fifth of its 15 s; the only write",
    "get /apis": "which optional APIs there are, every 30 s; by its ETag the answer is 304, without a body",
    "list llmservices": "every 10 minutes, out of the API server's cache: whether kopf's watch has missed a change",
}


def main() -> None:
    """Measure, print a table and write results/operator_rest.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("services", type=int, nargs="?", default=200)
    parser.add_argument("--seconds", type=float, default=900.0)
    options = parser.parse_args()
    machine = describe_machine()
    with bench(audited=True) as running:
        names = [f"llm-{number}" for number in range(options.services)]
        running.create(names)
        settle(running, running.start_operator(), names)
        begun = len(audited(running.plane.audit_log))
        time.sleep(options.seconds)
        calls = Counter(call(entry) for entry in audited(running.plane.audit_log)[begun:])
    figures = {
        "services": options.services,
        "seconds": options.seconds,
        "calls": {
            key: {"count": count, "per_hour": round(count * 3600 / options.seconds), "why": reason(key)}
            for key, count in sorted(calls.items())
        },
    }
    for key, value in figures["calls"].items():
        print(f"{key:<36} {value['count']:>6} {value['per_hour']:>6} an hour: {value['why']}")
    print(f"written to {write_result('operator_rest', figures, machine)}")
    if unexplained := [key for key in calls if not reason(key)]:
        sys.exit(f"for these calls there is no reason: {', '.join(unexplained)}")


def audited(log: Path) -> list[dict[str, Any]]:
    """Calls so far. A watch is there twice, as it begins and as it ends, and counts once."""
    entries = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [entry for entry in entries if (entry["verb"] == "watch") == (entry["stage"] == "ResponseStarted")]


def call(entry: dict[str, Any]) -> str:
    """`VERB RESOURCE`, or the path of what is no resource."""
    what = entry["objectRef"]["resource"] if "objectRef" in entry else entry["requestURI"].partition("?")[0]
    return f"{entry['verb']} {what}"


def reason(key: str) -> str:
    """Why a call is made at rest; empty for one that has no business there."""
    return _WATCH if key.startswith("watch ") else _REASONS.get(key, "")


if __name__ == "__main__":
    main()
