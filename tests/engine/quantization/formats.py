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


def with_activation_scales(pack: Callable[[torch.Tensor], Packed]) -> Callable[[torch.Tensor], Packed]:
    def packed(weight: torch.Tensor) -> Packed:
        tensors, means = pack(weight)
        return tensors | {"input_scale": torch.tensor(0.01), "output_scale": torch.tensor(0.02)}, means

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
        with_activation_scales(fp8((None, None), "weight_scale", lambda scale: scale[0, 0])),
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


def rounded(weight: torch.Tensor, bits: int, group_of: torch.Tensor, symmetric: bool) -> tuple[torch.Tensor, ...]:
    """Numbers [out, in], and zero points and scales [out, groups], by the range of each group."""
    highest, groups = 2**bits - 1, int(group_of.max()) + 1
    zeros = torch.empty(len(weight), groups, dtype=torch.int64)
    scales = torch.empty(len(weight), groups)
    for group in range(groups):
        part = weight[:, group_of == group]
        if symmetric:
            scales[:, group] = (2 * part.abs().amax(1) / highest).half().float()
            zeros[:, group] = 2 ** (bits - 1)
        else:
            low, high = part.amin(1).clamp_max(0), part.amax(1).clamp_min(0)
            scales[:, group] = ((high - low) / highest).half().float()
            zeros[:, group] = (-low / scales[:, group]).round().clamp(0, highest)
    numbers = (weight / scales[:, group_of] + zeros[:, group_of]).round().clamp(0, highest).long()
    return numbers, zeros, scales


def in_words(numbers: torch.Tensor, bits: int, order: list[int]) -> torch.Tensor:
    """[rows, n] -> [rows, n * bits / 32] int32; `order` says which number of a word is where, from the lowest bits."""
    shifts = torch.tensor([bits * order.index(which) for which in range(len(order))])
    words = (numbers.unflatten(1, (-1, len(order))) << shifts).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def awq(group_size: int) -> Callable[[torch.Tensor], Packed]:
    def pack(weight: torch.Tensor) -> Packed:
        columns = weight.shape[1]
        group_of = torch.arange(columns) // (columns if group_size == -1 else group_size)
        numbers, zeros, scales = rounded(weight, 4, group_of, symmetric=False)
        means = (numbers - zeros[:, group_of]) * scales[:, group_of]
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        tensors = {"qweight": in_words(numbers.t(), 4, order), "qzeros": in_words(zeros.t(), 4, order)}
        return tensors | {"scales": scales.t().half()}, means

    return pack


def gptq(bits: int, group_size: int, *, symmetric: bool, act_order: bool = False, version: int = 1) -> Any:
    def pack(weight: torch.Tensor) -> Packed:
        columns = weight.shape[1]
        group_of = torch.arange(columns) // (columns if group_size == -1 else group_size)
        if act_order:
            group_of = group_of[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
        numbers, zeros, scales = rounded(weight, bits, group_of, symmetric)
        means = (numbers - zeros[:, group_of]) * scales[:, group_of]
        order = list(range(32 // bits))
        stored_zeros = (zeros - 1) % 2**bits if version == 1 else zeros
        tensors = {
            "qweight": in_words(numbers, bits, order).t(),
            "qzeros": in_words(stored_zeros.t(), bits, order),
            "scales": scales.t().half(),
            "g_idx": group_of.int(),
        }
        return tensors, means

    return pack


def without(pack: Callable[[torch.Tensor], Packed], end: str) -> Callable[[torch.Tensor], Packed]:
    def packed(weight: torch.Tensor) -> Packed:
        tensors, means = pack(weight)
        return {name: tensor for name, tensor in tensors.items() if name != end}, means

    return packed


def awq_config(group_size: int) -> dict[str, Any]:
    settings = {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm"}
    return settings | {"modules_to_not_convert": None}


def gptq_config(bits: int, group_size: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": False} | more


AWQ_FORMATS = {f"awq, groups of {size}": Format(awq_config(size), awq(size)) for size in (32, 64, 128, -1)}
GPTQ_FORMATS = {
    "gptq, 4 bits": Format(gptq_config(4, 32, sym=True), gptq(4, 32, symmetric=True)),
    "gptq, 4 bits, with zero points": Format(gptq_config(4, 32, sym=False), gptq(4, 32, symmetric=False)),
    "gptq, 4 bits, act-order": Format(
        gptq_config(4, 16, sym=True, desc_act=True), gptq(4, 16, symmetric=True, act_order=True)
    ),
    "gptq, 4 bits, act-order, with zero points, version 2": Format(
        gptq_config(4, 32, sym=False, desc_act=True, checkpoint_format="gptq_v2"),
        gptq(4, 32, symmetric=False, act_order=True, version=2),
    ),
    "gptq, 8 bits, one group": Format(gptq_config(8, -1, sym=True), gptq(8, -1, symmetric=True)),
    "gptq, 8 bits, with zero points, without g_idx": Format(
        gptq_config(8, 32, sym=False), without(gptq(8, 32, symmetric=False), "g_idx")
    ),
    "gptq, 2 bits, with zero points": Format(gptq_config(2, 16, sym=False), gptq(2, 16, symmetric=False)),
}
FORMATS = FP8_FORMATS | AWQ_FORMATS | GPTQ_FORMATS


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
