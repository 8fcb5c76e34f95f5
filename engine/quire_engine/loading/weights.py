"""Weights into a model: streamed from safetensors, tensor by tensor, or drawn at random."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from quire_engine.layers.linear import FusedLinear
from quire_engine.layers.norm import RMSNorm
from quire_engine.loading.errors import CheckpointError
from quire_engine.memory_plan.safetensors_header import tensor_bytes
from quire_engine.memory_plan.weight_files import weight_files

# Tensors that old checkpoints carry and that are computed here.
_COMPUTED = ("rotary_emb.inv_freq",)


def weight_targets(model: nn.Module) -> dict[str, torch.Tensor]:
    """Where each of the checkpoint's tensors goes: name -> parameter, or the rows of a fused one."""
    targets: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        parent, _, own = path.rpartition(".")
        prefix = f"{parent}." if parent else ""
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, FusedLinear):
                targets |= {f"{prefix}{part}.{name}": parameter[rows] for part, rows in module.rows().items()}
            else:
                targets[f"{prefix}{own}.{name}"] = parameter
    return targets


@torch.no_grad()
def load_weights(model: nn.Module, directory: Path) -> None:
    """Fill `model` from the safetensors files in `directory`, one tensor at a time.

    Raises `CheckpointError` for files that are missing or broken, and for tensors that are missing, unexpected or
    of another shape.
    """
    targets = weight_targets(model)
    tied = "lm_head.weight" not in targets
    filled: set[str] = set()
    try:
        for file in weight_files(directory):
            tensor_bytes(file)  # a file that was cut off is found before a part of it is read
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - a safe_open is no dict
                    if name.endswith(_COMPUTED) or (tied and name == "lm_head.weight"):
                        continue
                    _fill(targets, name, tensors.get_tensor(name), file)
                    filled.add(name)
    except (ValueError, SafetensorError) as error:
        raise CheckpointError("InvalidCheckpoint", str(error)) from error
    missing = sorted(targets.keys() - filled)
    if missing:
        raise CheckpointError(
            "InvalidCheckpoint",
            f"{directory} lacks {len(missing)} of {len(targets)} tensors, {missing[0]} for one: "
            "config.json and the weights do not belong together, or a file is missing",
        )


def _fill(targets: dict[str, torch.Tensor], name: str, tensor: torch.Tensor, file: Path) -> None:
    target = targets.get(name)
    if target is None:
        raise ValueError(f"{file} holds {name}, which the model that config.json describes does not have")
    if target.shape != tensor.shape:
        raise ValueError(
            f"{file}: {name} has the shape {list(tensor.shape)} and config.json asks for {list(target.shape)}"
        )
    target.copy_(tensor)


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int) -> None:
    """Fill `model` with random weights, the same for the same seed, that keep activations in range."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed & (2**63 - 1))
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, RMSNorm):
                parameter.fill_(1.0)
            elif name == "bias":
                parameter.zero_()
            else:
                parameter.normal_(0.0, 0.02, generator=generator)
