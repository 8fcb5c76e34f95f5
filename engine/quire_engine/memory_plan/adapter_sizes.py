"""What LoRA adapters take beside a model, from the matrices of its layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from quire_engine.memory_plan.architectures import tower_tensors
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.memory_plan.safetensors_header import TensorHeader
from quire_engine.memory_plan.weight_sizes import share_of_kv

# --max-loras and --max-lora-rank, where they are unset.
MAX_LORAS, MAX_LORA_RANK = 4, 16
# An adapter's file is read whole, and may be in float32.
_BYTES_IN_FILE = 4

_MATRIX = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)\.(\w+)\.weight$")
# Matrices whose outputs GPUs share, with the linears that each is of, and those whose inputs they share.
_BY_OUTPUTS = {"q_proj": 1, "k_proj": 1, "v_proj": 1, "qkv_proj": 3, "gate_proj": 1, "up_proj": 1, "gate_up_proj": 2}
_BY_INPUTS = ("o_proj", "down_proj")
_NOT_SHARED = ("shared_expert_gate",)
_OF_MLP = ("gate_proj", "up_proj", "gate_up_proj")
# Routers to experts, which no adapter changes.
_ROUTERS = ("gate", "router")
_PACKED = (".qweight", ".weight_packed")


@dataclass(frozen=True, kw_only=True)
class AdapterSizes:
    """Inputs and outputs of the linears that an adapter may change, summed up over the layers, by how GPUs share them.

    A change of rank r has r elements for each.
    """

    split: int
    kv: int  # of keys and values: split over as many GPUs as there are KV heads
    whole: int  # that each GPU has
    widest_up: int  # outputs of the widest MLP's matrices that are multiplied as one
    widest_down: int  # inputs of the widest projection out of an MLP

    @staticmethod
    def of(tensors: Mapping[str, TensorHeader], shape: ModelShape) -> AdapterSizes | None:
        """From a checkpoint's tensors by name; None where layers have matrices of other names, or packed ones."""
        tower, up = tower_tensors(shape.architecture), dict[tuple[str, str], int]()
        split = kv = whole = widest_down = 0
        for name, tensor in tensors.items():
            if name.startswith(tower):
                continue
            if name.endswith(_PACKED):
                return None
            found = _MATRIX.search(name)
            if found is None or int(found[1]) >= shape.num_layers or found[3] in _ROUTERS:
                continue
            if len(tensor.shape) != 2 or ".experts" in name:  # norms, and matrices that see some tokens only
                continue
            layer, module, matrix = found.groups()
            outputs, inputs = tensor.shape
            if matrix in _BY_INPUTS:
                split, whole = split + inputs, whole + outputs
                widest_down = max(widest_down, inputs if matrix == "down_proj" else 0)
            elif matrix in _BY_OUTPUTS:
                of_keys = int(outputs * share_of_kv(name, shape))
                split, kv, whole = split + outputs - of_keys, kv + of_keys, whole + _BY_OUTPUTS[matrix] * inputs
                if matrix in _OF_MLP:
                    up[layer, module] = up.get((layer, module), 0) + outputs
            elif matrix in _NOT_SHARED:
                whole += inputs + outputs
            else:
                return None
        if not whole:
            return None
        return AdapterSizes(
            split=split, kv=kv, whole=whole, widest_up=max(up.values(), default=0), widest_down=widest_down
        )

    def num_bytes(self, shape: ModelShape, tensor: int, item: int, rank: int, num_adapters: int, tokens: int) -> int:
        """Bytes on one of `tensor` GPUs, of the whole model's `shape`, with `item` bytes an element.

        For `num_adapters` of the largest `rank`, one more that is being loaded, and a step of `tokens`.
        """
        kept = rank * (self.whole + self.split // tensor + self.kv // min(tensor, shape.num_kv_heads))
        part = shape.shard(tensor)
        attention = (part.num_heads + 2 * part.num_kv_heads) * part.head_dim
        widest = shape.hidden_size + max(attention, self.widest_up // tensor, self.widest_down // tensor) + rank
        return ((num_adapters + 1) * kept + tokens * widest) * item

    def file_bytes(self, rank: int) -> int:
        """Bytes of the largest file, which is in host memory while it is loaded."""
        return rank * (self.whole + self.split + self.kv) * _BYTES_IN_FILE
