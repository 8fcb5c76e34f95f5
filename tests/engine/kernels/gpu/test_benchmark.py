"""The benchmark for GPUs goes through all that it measures, without one too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[4]


@pytest.mark.usefixtures("device")
def test_the_tiny_benchmark_finds_every_kernel_right_and_runs_the_engine(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--output", str(file)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(file.read_text())["figures"]
    assert all(of_case["right"] for of_case in figures["kernels"].values())
    assert {name.partition(":")[0] for name in figures["kernels"]} == {
        "attention",
        "latent attention",
        "add and norm",
        "gate",
        "rotate and write",
        "linear of 4 bits",
        "linear of FP8, scales of rows",
        "linear of FP8, scales of blocks",
        "experts of 4 bits",
        "experts of FP8, scales of blocks",
        "experts of int8",
        "draw",
    }
    assert figures["engine"]["one stream"]["tokens"] == 2
