"""The log of a start says whose kernels do the work, and why."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from quire_engine.config import EngineConfig
from quire_engine.engine import build_engine
from quire_engine.kernels import choice, cpu, report
from tests.engine.models.checkpoints import FAMILIES, make_model, save

pytestmark = pytest.mark.usefixtures("one_thread")

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def as_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With Triton, a GPU like Hopper and no library in C++, whatever is there where the tests run."""
    monkeypatch.delenv("QUIRE_KERNELS", raising=False)
    for module in (choice, report):
        monkeypatch.setattr(module, "has_triton", lambda: True)
        monkeypatch.setattr(module, "shared_memory", lambda index: choice.SHARED_MEMORY)
    monkeypatch.setattr(cpu, "library", None)
    monkeypatch.setattr(cpu, "flags_of_processor", lambda: cpu.NEEDED)


def test_a_gpu_with_room_has_those_in_triton() -> None:
    assert report.kernels_of(GPU) == "Quire's in Triton, and torch's for what these do not do"


def test_a_gpu_without_room_is_told_with_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (choice, report):
        monkeypatch.setattr(module, "shared_memory", lambda index: 99 * 1024)
    assert "torch's, as this GPU gives a block 99 KiB" in report.kernels_of(GPU)


def test_triton_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (choice, report):
        monkeypatch.setattr(module, "has_triton", lambda: False)
    assert report.kernels_of(GPU) == "torch's, as Triton is not installed"


@pytest.mark.parametrize("device", [GPU, torch.device("cpu")])
def test_kernels_that_are_turned_off(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_KERNELS", "off")
    assert report.kernels_of(device) == "torch's, as QUIRE_KERNELS is off"


def test_a_cpu_without_avx512_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "flags_of_processor", lambda: cpu.NEEDED - {"avx512bw"})
    assert report.kernels_of(torch.device("cpu")) == "torch's, as this CPU lacks avx512bw"


def test_a_library_that_was_not_built() -> None:
    assert "torch's, as no library in C++ could be loaded" in report.kernels_of(torch.device("cpu"))


@pytest.mark.parametrize(("multiplies", "linears"), [(True, "linears of bfloat16 too"), (False, "linears are torch's")])
def test_a_library_that_is_loaded(
    library: cpu.Library, monkeypatch: pytest.MonkeyPatch, multiplies: bool, linears: str
) -> None:
    monkeypatch.setattr(cpu, "library", library)
    monkeypatch.setattr(cpu, "multiplies", multiplies)
    assert report.kernels_of(torch.device("cpu")).startswith(f"Quire's in C++, {linears}")


def test_a_start_says_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cls, config = FAMILIES["llama"]
    save(make_model(cls, config()), tmp_path)
    with caplog.at_level(logging.INFO, logger="quire_engine"):
        build_engine(EngineConfig(model=str(tmp_path), device="cpu", num_gpu_blocks_override=16))
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("kernels: ")]
    assert said == [f"kernels: {report.kernels_of(torch.device('cpu'))}"]
