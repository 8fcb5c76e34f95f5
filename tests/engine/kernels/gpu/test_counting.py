"""A start knows which kernels it had to compile, and where the others were."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[4]
PROGRAM = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from quire_engine.kernels.compiling import listen

@triton.jit
def double(values):
    tl.store(values, 2 * tl.load(values))

counted = listen()
for _ in range(2):
    triton.compile(ASTSource(double, {"values": "*fp32"}), target=GPUTarget("cuda", 90, 32))
print(counted.compiled, counted.found, counted.seconds > 0, counted, sep=";")
"""


@pytest.mark.usefixtures("device")
def test_kernels_are_counted_as_compiled_once_and_then_as_found(tmp_path: Path) -> None:
    program, cache = tmp_path / "program.py", tmp_path / "cache"
    program.write_text(PROGRAM)  # Triton reads a kernel's source from its file
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(REPOSITORY / "engine")}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    compiled, found, took_time, told = done.stdout.strip().split(";")
    assert (compiled, found, took_time) == ("1", "1", "True")
    assert told.startswith("1 compiled in ")
    assert told.endswith(f" s, 1 found in {cache}")
