"""The library of kernels, built from the sources."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from quire_engine.kernels import cpu

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> cpu.Library:
    """The library as pyproject.toml has it built."""
    if not cpu.flags_of_processor() >= cpu.NEEDED:
        pytest.skip("the processor has no AVX-512")  # and torch does the work there, which the other tests hold
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")  # and no library is built: it is optional
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    (extension,) = settings["tool"]["setuptools"]["ext-modules"]
    file = tmp_path_factory.mktemp("kernels") / "cpu.so"
    sources = [REPOSITORY / source for source in extension["sources"]]
    subprocess.run(["g++", "-fPIC", "-shared", *extension["extra-compile-args"], *sources, "-o", file], check=True)
    return cpu.Library(file)


@pytest.fixture
def in_use(library: cpu.Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "library", library)
    monkeypatch.setattr(cpu, "multiplies", True)
