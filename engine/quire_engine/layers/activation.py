"""Activations, by the names that config.json has for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from quire_engine.kernels import cpu
from quire_engine.kernels.choice import by_gpu_kernels

if TYPE_CHECKING:
    from quire_engine.kernels.gpu.gate import Gate

Activation = Callable[[torch.Tensor], torch.Tensor]

_gelu_tanh: Activation = partial(functional.gelu, approximate="tanh")


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def _squared_relu(x: torch.Tensor) -> torch.Tensor:
    return functional.relu(x).square()


_GATES: dict[Activation, Gate] = {functional.silu: "silu", functional.gelu: "gelu", _gelu_tanh: "gelu_tanh"}


def gated(both: torch.Tensor, activation: Activation) -> torch.Tensor:
    """The activation of the first half of `both` [..., 2 * size] times the second: [..., size]."""
    gate = _GATES.get(activation)
    if gate is not None and by_gpu_kernels(both.device):
        from quire_engine.kernels.gpu.gate import gate_and_multiply

        return gate_and_multiply(both, gate)
    library = cpu.library_for(both) if activation is functional.silu else None
    if library is not None:
        return library.silu_and_mul(both)
    left, right = both.chunk(2, dim=-1)
    return activation(left) * right


ACTIVATIONS: dict[str, Activation] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "gelu": functional.gelu,
    "gelu_python": functional.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_accurate": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_python_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": functional.relu,
    "relu2": _squared_relu,
    "relu6": functional.relu6,
    "leaky_relu": functional.leaky_relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "mish": functional.mish,
    "hardswish": functional.hardswish,
}
