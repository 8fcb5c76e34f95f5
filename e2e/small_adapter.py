"""A small adapter, as peft saves one, written where there is no peft: in a pod of the engine's image."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

_MODULE, _RANK = "q_proj", 4


def write_adapter(model: Path, directory: Path) -> None:
    """Write to `directory` an adapter of the query projections of `model`, so large that it changes every answer."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(model / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118, since it cannot be iterated over
            if not name.endswith(f"{_MODULE}.weight"):
                continue
            rows, columns = file.get_slice(name).get_shape()
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(_RANK, columns, generator=generator)
            tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, _RANK, generator=generator)
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": 2 * _RANK, "target_modules": [_MODULE]}
    (directory / "adapter_config.json").write_text(json.dumps(config))
