"""Whether the kernels for GPUs do the work of a device."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

interpreted_on_cpu = False
"""For tests: use the kernels on the CPU too. TRITON_INTERPRET=1 has to be set before Triton is imported."""


def by_gpu_kernels(device: torch.device) -> bool:
    """Whether Triton's kernels run on `device`: on a GPU, where Triton is installed. Imports nothing."""
    return has_triton() if device.type == "cuda" else interpreted_on_cpu


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None
