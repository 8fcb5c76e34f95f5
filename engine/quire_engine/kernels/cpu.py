"""Kernels for CPUs: a small library in C++, `cpu.cpp`, that is built with the package and used where it is faster.

It is faster than torch for linears in bfloat16 on processors that have AVX-512 and no instructions for bfloat16, by
measurement: see benchmarks/linears.py. Elsewhere, and where the library was not built, torch does the same.
"""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path

import torch
from torch.nn import functional

log = logging.getLogger(__name__)

NEEDED = frozenset(("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"))
BETTER_BY_TORCH = frozenset(("avx512_bf16", "amx_bf16"))  # oneDNN multiplies bfloat16 itself there
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


class Library:
    """The kernels. Threads are those of torch, whose OpenMP it shares."""

    def __init__(self, file: Path) -> None:
        """Raises `OSError` where the file is none of this machine's libraries."""
        found = ctypes.CDLL(str(file))
        self._room, self._linear = found.linear_room, found.linear_bfloat16
        self._room.argtypes, self._room.restype = [_SIZE] * 2, _SIZE
        self._linear.argtypes, self._linear.restype = [_POINTER] * 5 + [_SIZE] * 3 + [ctypes.c_int], None

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """[..., inputs] -> [..., outputs], for weight [outputs, inputs] and bias [outputs]; all bfloat16, on the CPU.

        Sums are float32 and in the same order whatever the number of rows: a row's result depends on that row alone.
        """
        outputs, inputs = weight.shape
        x = x.contiguous()
        y = x.new_empty((*x.shape[:-1], outputs))
        rows = x.numel() // inputs
        room = torch.empty(self._room(rows, inputs), dtype=torch.float32)
        added = None if bias is None else bias.data_ptr()
        pointers = x.data_ptr(), weight.data_ptr(), added, y.data_ptr(), room.data_ptr()
        self._linear(*pointers, rows, inputs, outputs, torch.get_num_threads())
        return y


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`functional.linear`, by the library where that is faster."""
    ours = library is not None and x.dtype == weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    if ours and weight.is_contiguous() and not torch.is_grad_enabled():
        assert library is not None
        return library.linear(x, weight, bias)
    return functional.linear(x, weight, bias)


def flags_of_processor() -> frozenset[str]:
    """The instructions that the processor has, by Linux's names; none where they are not told so."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def _built() -> Library | None:
    flags = flags_of_processor()
    if not flags >= NEEDED or flags & BETTER_BY_TORCH:
        return None
    for file in Path(__file__).parent.glob("_cpu.*.so"):
        try:
            return Library(file)
        except (OSError, AttributeError) as error:
            log.warning("the library of kernels for CPUs cannot be used, torch does its work: %s", error)
    return None


library = _built()
