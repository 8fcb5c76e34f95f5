"""Fixtures of the engine's tests."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from quire_engine.kernels import cpu

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: threads that wait for each other make small models crawl on a busy machine."""
    import torch

    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def library_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of kernels for CPUs, as pyproject.toml has it built."""
    from quire_engine.kernels import cpu

    if not cpu.flags_of_processor() >= cpu.NEEDED:
        pytest.skip("the processor has no AVX-512")  # and torch does the work there, which the other tests hold
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")  # and no library is built: it is optional
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    extensions = settings["tool"]["setuptools"]["ext-modules"]
    extension = next(one for one in extensions if one["name"] == "quire_engine.kernels._cpu")
    file = tmp_path_factory.mktemp("kernels") / "cpu.so"
    sources = [REPOSITORY / source for source in extension["sources"]]
    subprocess.run(["g++", "-fPIC", "-shared", *extension["extra-compile-args"], *sources, "-o", file], check=True)
    return file


@pytest.fixture(scope="session", params=["floats", "tiles"])
def library(library_file: Path, request: pytest.FixtureRequest) -> cpu.Library:
    """Linears in bfloat16 by floats, and by the processor's tiles where it has any."""
    from quire_engine.kernels import cpu

    if request.param == "tiles" and not cpu.flags_of_processor() >= cpu.MULTIPLY_TILES:
        # Linears go by floats there, which the other half of these tests holds.
        pytest.skip("the processor has no tiles")
    found = cpu.Library(library_file, tiles=request.param == "tiles")
    assert found.tiles == (request.param == "tiles")
    return found


@pytest.fixture
def in_use(library: cpu.Library, monkeypatch: pytest.MonkeyPatch) -> None:
    from quire_engine.kernels import cpu

    monkeypatch.setattr(cpu, "library", library)
    monkeypatch.setattr(cpu, "multiplies", True)
