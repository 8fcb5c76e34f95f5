"""How large a checkpoint's weights are once they are loaded, on one GPU or shared by several."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from quire_engine.memory_plan.architectures import float32_tensors, tower_tensors, unused_tensors
from quire_engine.memory_plan.model_shape import BYTES_OF_DTYPE, ModelShape
from quire_engine.memory_plan.quantization import UNUSED, Gptq, Quantization
from quire_engine.memory_plan.safetensors_header import TensorHeader

# Converted to the dtype that is served. Every other type is part of a quantized format, and stays as it is.
_FLOATS = ("F64", "F32", "F16", "BF16")
# Endings of tensors that old checkpoints carry and that nobody needs: what can be computed, and masks.
COMPUTED = (
    "rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    "position_ids",
)
# Scales of FP8 weights, which stay float32 whatever is served.
_SCALES = (".weight_scale", ".weight_scale_inv")
# The output head, which may be stored though it is the embedding.
_HEADS = ("lm_head.weight", "embed_out.weight", "language_model.lm_head.weight")
# Tables, routers to experts, projections to latent vectors and halves of adapters, which each GPU has whole.
_WHOLE = (
    "wpe.weight",
    ".embed_positions.weight",
    ".project_in.weight",
    ".project_out.weight",
    ".position_embeddings.weight",
    ".token_type_embeddings.weight",
    ".gate.weight",
    ".router.layer.weight",
    ".shared_expert_gate.weight",
    ".q_a_proj.weight",
    ".kv_a_proj_with_mqa.weight",
    ".qkv_proj.lora_A.weight",
    ".gate_up_proj.lora_A.weight",
    ".o_proj.lora_B.weight",
    ".down_proj.lora_B.weight",
)
# DeepSeek's projection out of latent vectors, which is not kept quantized.
_UNDONE = ".kv_b_proj"
LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks)\.(\d+)\.")
# Projections to queries, keys and values that are stored as one.
_FUSED = (".qkv_proj.", ".query_key_value.", ".c_attn.", ".Wqkv.")


@dataclass(frozen=True, kw_only=True)
class WeightSizes:
    """Elements of the tensors that are loaded, by how GPUs share them, and bytes of those kept as they are stored."""

    split: int  # elements of matrices that are split over all GPUs
    kv: int  # elements of the projections to keys and values: split over as many GPUs as there are KV heads
    whole: int  # elements that each GPU has: norms, biases and encoders of images
    stored: int  # bytes of quantized tensors, split over all GPUs
    float32: int  # elements that each GPU has in float32, whatever is served
    linear: int  # those of split and kv that are in layers, which quantization makes smaller
    stored_kv: int = 0  # bytes of those that are split as kv
    stored_whole: int = 0  # bytes of those that each GPU has

    @staticmethod
    def of(
        tensors: Mapping[str, TensorHeader], shape: ModelShape, quantization: Quantization | None = None
    ) -> WeightSizes:
        """Sum up a checkpoint's tensors, by name."""
        ordered = isinstance(quantization, Gptq) and quantization.act_order and quantization.group_size is not None
        not_kept = (*COMPUTED, *UNUSED, *(() if ordered else (".g_idx",)))
        unused = unused_tensors(shape.architecture)
        kept = float32_tensors(shape.architecture)
        tower = tower_tensors(shape.architecture)
        split = kv = whole = stored = stored_kv = stored_whole = float32 = linear = 0
        for name, tensor in tensors.items():
            if name.endswith(not_kept) or name.startswith(unused) or (shape.tied_embeddings and name in _HEADS):
                continue
            if name.startswith(tower):
                whole += math.prod(tensor.shape)
                continue
            layer = LAYER.search(name)
            if layer is not None and int(layer[1]) >= shape.num_layers:
                continue  # of a draft model that comes with it
            elements = math.prod(tensor.shape)
            module = name.rpartition(".")[0]
            of_kv = share_of_kv(name, shape)
            if module.endswith(_UNDONE) and _is_quantized(module, tensors):
                if name.endswith((".weight", ".qweight")):
                    split += elements * _numbers_in_each(tensor, quantization)
                continue
            if tensor.dtype not in _FLOATS or name.endswith(_SCALES):
                size = tensor.size if tensor.dtype not in _FLOATS else elements * BYTES_OF_DTYPE["float32"]
                if f"{module}.weight".endswith(_WHOLE):
                    stored_whole += size
                else:
                    stored_kv += int(size * of_kv)
                    stored += size - int(size * of_kv)
                continue
            if name.endswith(kept):
                float32 += elements
                continue
            if len(tensor.shape) < 2 or f"{module}.weight".endswith(_WHOLE):
                whole += elements
                continue
            kv += int(elements * of_kv)
            split += elements - int(elements * of_kv)
            if layer is not None and not module.endswith(_UNDONE):
                linear += elements
        return WeightSizes(
            split=split,
            kv=kv,
            whole=whole,
            stored=stored,
            float32=float32,
            linear=linear,
            stored_kv=stored_kv,
            stored_whole=stored_whole,
        )

    @property
    def is_quantized(self) -> bool:
        return self.stored + self.stored_kv + self.stored_whole > 0

    @property
    def elements(self) -> int:
        """Parameters that are not quantized."""
        return self.split + self.kv + self.whole + self.float32

    def bytes_per_gpu(self, shape: ModelShape, dtype: str, tensor: int = 1, bits: float | None = None) -> int:
        """Bytes that one of `tensor` GPUs holds of the whole model's `shape`, served as `dtype`.

        With `bits`, as if the layers' matrices were quantized to so many bits an element, scales included.
        """
        item = BYTES_OF_DTYPE[dtype]
        shared = -(-(self.split * item + self.stored) // tensor)
        keys_and_values = -(-(self.kv * item + self.stored_kv) // min(tensor, shape.num_kv_heads))
        total = shared + keys_and_values + self.whole * item + self.stored_whole + 4 * self.float32
        saved = int(self.linear * (item - bits / 8)) // tensor if bits is not None else 0
        return total - saved


def share_of_kv(name: str, shape: ModelShape) -> Fraction:
    """How much of a tensor belongs to keys and values."""
    if ".k_proj." in name or ".v_proj." in name:
        return Fraction(1)
    if any(fused in name for fused in _FUSED):
        return Fraction(2 * shape.num_kv_heads, shape.num_heads + 2 * shape.num_kv_heads)
    return Fraction(0)


def _is_quantized(module: str, tensors: Mapping[str, TensorHeader]) -> bool:
    weight = tensors.get(f"{module}.weight")
    return weight is None or weight.dtype not in _FLOATS


def _numbers_in_each(tensor: TensorHeader, quantization: Quantization | None) -> int:
    """Weights in each element that is stored: 1 in FP8, several in a word of 32 bits."""
    return 1 if tensor.dtype != "I32" else 32 // (quantization.bits if isinstance(quantization, Gptq) else 4)
