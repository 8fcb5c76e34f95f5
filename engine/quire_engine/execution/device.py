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


def pick_device(wanted: str, local_rank: int = 0, num_local: int = 1) -> torch.device:
    """The device for --device, of one of `num_local` ranks of this machine.

    Raises `ValueError` when there is no GPU and one was asked for, or when there are too few.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda and torch finds no GPU: use --device cpu, or give the pod a GPU")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if found < num_local:
        raise ValueError(
            f"--tensor-parallel-size x --pipeline-parallel-size asks for {num_local} GPUs on each node and torch finds "
            f"{found}: give the pod more, or lower them"
        )
    if num_local == 1:
        return torch.device("cuda")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def pick_dtype(wanted: str, of_checkpoint: str, device: torch.device) -> str:
    """The name of the dtype for --dtype."""
    return serving_dtype(_ALIASES.get(wanted, wanted), of_checkpoint, on_gpu=device.type == "cuda")


def limit_threads(num_local: int = 1) -> int:
    """Let torch use as many threads as the cgroup's quota keeps busy, shared by the ranks of this machine.

    OMP_NUM_THREADS wins. Returns the number.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, int(cpu_limit()) // num_local))
    return torch.get_num_threads()


def device_memory(device: torch.device) -> Memory:
    """Memory of the GPU, or of this process's cgroup."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Memory(total, total - free)
    return Memory(memory_limit(), resident_bytes())
