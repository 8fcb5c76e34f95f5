"""The device that the engine runs on, and what it offers."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from quire_engine.memory_plan.host_memory import cpu_limit, memory_limit, resident_bytes
from quire_engine.memory_plan.model_shape import serving_dtype

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_ALIASES = {"float": "float32", "half": "float16"}


@dataclass(frozen=True)
class Memory:
    """Bytes: what there is for this process, and what is in use."""

    limit: int
    used: int


def pick_device(wanted: str) -> torch.device:
    """The device for --device. Raises `ValueError` when there is no GPU and one was asked for."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda and torch finds no GPU: use --device cpu, or give the pod a GPU")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(wanted: str, of_checkpoint: str, device: torch.device) -> str:
    """The name of the dtype for --dtype."""
    return serving_dtype(_ALIASES.get(wanted, wanted), of_checkpoint, on_gpu=device.type == "cuda")


def limit_threads() -> int:
    """Let torch use as many threads as the cgroup's quota keeps busy; OMP_NUM_THREADS wins. Returns the number."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, int(cpu_limit())))
    return torch.get_num_threads()


def device_memory(device: torch.device) -> Memory:
    """Memory of the GPU, or of this process's cgroup."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Memory(total, total - free)
    return Memory(memory_limit(), resident_bytes())
