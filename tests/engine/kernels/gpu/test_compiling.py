"""What the interpreter runs is also what a GPU's compiler takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[4]
SHARED_MEMORY = 227 * 1024  # of a Hopper SM, for one block


@pytest.mark.slow
@pytest.mark.usefixtures("device")
def test_every_kernel_compiles_for_hopper_within_its_shared_memory(tmp_path: Path) -> None:
    from tests.engine.kernels.gpu.compile_all import KERNELS  # which imports Triton, where there is one

    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.engine.kernels.gpu.compile_all"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    taken = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, _ in taken} == {name for names in KERNELS.values() for name in names}
    assert all(int(size) <= SHARED_MEMORY for _, size in taken), taken
