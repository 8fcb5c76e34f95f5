"""Falcon: 7B with one key and value for all heads, 40B and 11B with groups of heads, the RW models with ALiBi."""

from __future__ import annotations

import torch

from quire_engine.layers.norm import NormSpec
from quire_engine.memory_plan.config_fields import positive_int
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.models.attention_block import AlibiSpec, AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.llama import rope_of
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.naming import grouped_heads, renamed
from quire_engine.models.settings import Config, activation, flag, number


def falcon(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    shape = ModelShape.from_config(config)
    new, bias = flag(config, "new_decoder_architecture", False), flag(config, "bias", False)
    alibi = None
    if flag(config, "alibi", False):
        # It was trained with slopes and positions multiplied in bfloat16, and the sum with the scores scaled.
        alibi = AlibiSpec(scale=shape.head_dim**-0.5, dtype=torch.bfloat16)
    two = new and positive_int(config, "num_ln_in_parallel_attn", default=2) == 2
    parallel = new or flag(config, "parallel_attn", True)
    layer = LayerSpec(
        attention=AttentionSpec(
            rope=None if alibi is not None else rope_of(config), alibi=alibi, qkv_bias=bias, output_bias=bias
        ),
        mlp=MLPSpec(activation=activation(config, "activation", "gelu"), gated=False, bias=bias),
        norm=NormSpec("layer", number(config, "layer_norm_epsilon", 1e-5)),
        arrangement="parallel, two norms" if two else "parallel" if parallel else "pre",
    )
    modules = {
        "model.embed_tokens": "transformer.word_embeddings",
        "model.norm": "transformer.ln_f",
        "self_attn.o_proj": "self_attention.dense",
        "mlp.up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    }
    if two:
        modules |= {"input_layernorm": "ln_attn", "post_attention_layernorm": "ln_mlp"}
    naming = renamed(
        modules,
        layers="transformer.h.",
        fused=grouped_heads("self_attention.query_key_value", shape),
        otherwise={"transformer.": ""},
    )
    return DecoderSpec.of(config, layer, naming=naming)
