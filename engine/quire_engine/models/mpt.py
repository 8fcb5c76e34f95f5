"""MPT: ALiBi with slopes of its own for numbers of heads that are no power of two, and no biases."""

from __future__ import annotations

import math

from quire_engine.layers.norm import NormSpec
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.models.attention_block import AlibiSpec, AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.naming import renamed, stacked_heads
from quire_engine.models.settings import Config, number, optional_number, refuse


def mpt(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    attention = config.get("attn_config") or {}
    if not isinstance(attention, dict):
        raise ValueError(f"config.json: attn_config is {attention!r}: it must be an object")
    for name, only in (("alibi", True), ("qk_ln", False), ("prefix_lm", False), ("attn_uses_sequence_id", False)):
        refuse(attention, name, only)
    refuse(attention, "attn_type", "multihead_attention")
    refuse(config, "no_bias", True)
    refuse(config, "logit_scale", None)
    refuse(config, "expansion_ratio", 4)
    if config.get("norm_type") != "layernorm":  # the same, computed in float32
        refuse(config, "norm_type", "low_precision_layernorm")
    shape = ModelShape.from_config(config)
    layer = LayerSpec(
        attention=AttentionSpec(
            alibi=AlibiSpec(slopes=_slopes(shape.num_heads, number(attention, "alibi_bias_max", 8))),
            clip=optional_number(attention, "clip_qkv", None),
            scale=optional_number(attention, "softmax_scale", None),
        ),
        mlp=MLPSpec(activation="gelu", gated=False),
        norm=NormSpec("layer without bias", number(config, "layer_norm_epsilon", 1e-5)),
    )
    naming = renamed(
        {
            "model.embed_tokens": "transformer.wte",
            "model.norm": "transformer.norm_f",
            "input_layernorm": "norm_1",
            "post_attention_layernorm": "norm_2",
            "self_attn.o_proj": "attn.out_proj",
            "mlp.up_proj": "ffn.up_proj",
            "mlp.down_proj": "ffn.down_proj",
        },
        layers="transformer.blocks.",
        fused=stacked_heads("attn.Wqkv", shape),
    )
    return DecoderSpec.of(config, layer, naming=naming)


def _slopes(num_heads: int, most: float) -> tuple[float, ...]:
    """2^-(most i / n) for the n heads of the next power of two: every second one first, then those between."""
    power = 2 ** math.ceil(math.log2(num_heads))
    slopes = [2.0 ** -(most * i / power) for i in range(1, power + 1)]
    return tuple(slopes if power == num_heads else (slopes[1::2] + slopes[::2])[:num_heads])
