"""Checkpoints as quantizers write them, packed here from the formats' layouts, and the weights that they mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tests.engine.models.checkpoints import save

Packed = tuple[dict[str, torch.Tensor], torch.Tensor]
"""The tensors that stand for a weight, by the ends of their names, and the weight that they mean."""


@dataclass(frozen=True)
class Format:
    """What config.json says of a checkpoint, and how each linear's weight [out, in] is packed."""

    config: dict[str, Any]
    pack: Callable[[torch.Tensor], Packed]


def fp8(block: tuple[int | None, int | None], scale_name: str, shape: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    def pack(weight: torch.Tensor) -> Packed:
        high, wide = block[0] or weight.shape[0], block[1] or weight.shape[1]
        blocks = [[cell.abs().amax() / 448 for cell in row.split(wide, 1)] for row in weight.split(high, 0)]
        scale = torch.tensor(blocks)
        full = scale.repeat_interleave(high, 0)[: weight.shape[0]].repeat_interleave(wide, 1)[:, : weight.shape[1]]
        stored = (weight / full).to(torch.float8_e4m3fn)
        return {"weight": stored, scale_name: shape(scale)}, stored.float() * full

    return pack


def with_input_scale(pack: Callable[[torch.Tensor], Packed]) -> Callable[[torch.Tensor], Packed]:
    def packed(weight: torch.Tensor) -> Packed:
        tensors, means = pack(weight)
        return tensors | {"input_scale": torch.tensor(0.01)}, means

    return packed


def compressed(strategy: str, **weights: Any) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True, "dynamic": False} | weights
    group = {"weights": weights, "targets": ["Linear"], "input_activations": {"num_bits": 8, "type": "float"}}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


FP8_FORMATS = {
    "fp8 by tensors, with scales of activations": Format(
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
        with_input_scale(fp8((None, None), "weight_scale", lambda scale: scale[0, 0])),
    ),
    "fp8 by blocks": Format(
        {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [16, 32]},
        fp8((16, 32), "weight_scale_inv", lambda scale: scale),
    ),
    "fp8 by blocks as large as DeepSeek's": Format(
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
        fp8((128, 128), "weight_scale_inv", lambda scale: scale),
    ),
    "fbgemm fp8 by rows": Format(
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]},
        fp8((1, None), "weight_scale", lambda scale: scale),
    ),
    "compressed-tensors fp8 by rows": Format(
        compressed("channel"), fp8((1, None), "weight_scale", lambda scale: scale[:, 0])
    ),
    "compressed-tensors fp8 by tensors": Format(
        compressed("tensor"), fp8((None, None), "weight_scale", lambda scale: scale[0])
    ),
    "compressed-tensors fp8 by blocks": Format(
        compressed("block", block_structure="32x16"), fp8((32, 16), "weight_scale", lambda scale: scale)
    ),
}
FORMATS = FP8_FORMATS


def is_linear(name: str, tensor: torch.Tensor) -> bool:
    return ".layers." in name and name.endswith("_proj.weight") and tensor.dim() == 2


def save_quantized(
    model: PreTrainedModel, directory: Path, form: Format, only: Callable[[str], bool] = lambda name: True
) -> Path:
    """Write `model` with its linears packed, and give `model` the weights that these mean."""
    save(model, directory)
    tensors = load_file(directory / "model.safetensors")
    parameters = dict(model.named_parameters())
    for name, weight in list(tensors.items()):
        if is_linear(name, weight) and only(name):
            packed, means = form.pack(tensors.pop(name))
            tensors |= {f"{name.removesuffix('weight')}{end}": t.contiguous() for end, t in packed.items()}
            with torch.no_grad():
                parameters[name].copy_(means)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    edit_config(directory, quantization_config=form.config)
    return directory


def edit_config(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
