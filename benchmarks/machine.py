"""What a figure was measured on, and where results are kept."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory in GiB, and the load before the run, which says how far to trust a figure."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    kibibytes = next(
        int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line
    )
    return {
        "processor": models[0] if models else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(kibibytes / (1 << 20), 1),
        "load_before": round(os.getloadavg()[0], 2),
        "python": sys.version.split()[0],
    }


def write_result(name: str, figures: dict[str, Any], machine: dict[str, Any], *, module: str | None = None) -> Path:
    """Write `results/NAME.json`: the figures, the command, the commit and the machine.

    The command is of `module` where the file has another name. Of paths in it only the last part is written.
    """
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.strip()
    words = (re.sub(r"(^|=)[^=]*/", r"\1", word) for word in sys.argv[1:])
    result = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m", f"benchmarks.{module or name}", *words]),
        "commit": commit,
        "machine": machine,
        "figures": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


def resident_mib(pid: int) -> float:
    """MiB that a process holds in memory now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} says nothing of its memory")


def cpu_seconds(pid: int) -> float:
    """Processor time, of user and system, that a process has used with all of its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # from the process's state on
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    found = [int(child) for file in children for child in file.read_text().split()]
    return found + [one for child in found for one in descendants(child)]
