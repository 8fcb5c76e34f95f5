"""Whose kernels a device has, in words, and why it has not others."""

from __future__ import annotations

import torch

from quire_engine.kernels import cpu
from quire_engine.kernels.choice import SHARED_MEMORY, are_wanted, by_gpu_kernels, has_triton, shared_memory


def kernels_of(device: torch.device) -> str:
    """For the log of a start."""
    if not are_wanted():
        return "torch's, as QUIRE_KERNELS is off"
    if by_gpu_kernels(device):
        return "Quire's in Triton, and torch's for what these do not do"
    return _instead_of_triton(device.index) if device.type == "cuda" else _on_cpu()


def _instead_of_triton(index: int | None) -> str:
    if not has_triton():
        return "torch's, as Triton is not installed"
    return (
        f"torch's, as this GPU gives a block {shared_memory(index) // 1024} KiB of shared memory and Quire's in Triton "
        f"take up to {SHARED_MEMORY // 1024}"
    )


def _on_cpu() -> str:
    if cpu.library is not None:
        linears = (
            "linears of bfloat16 too" if cpu.multiplies else "linears are torch's, as this CPU multiplies bfloat16"
        )
        return f"Quire's in C++, {linears}"
    missing = sorted(cpu.NEEDED - cpu.flags_of_processor())
    if missing:
        return f"torch's, as this CPU lacks {', '.join(missing)}"
    return "torch's, as no library in C++ could be loaded: it is built with the package where there is a C++ compiler"
