"""StarCoder and SantaCoder: GPT-2 with one key and value for all heads."""

from __future__ import annotations

from quire_engine.layers.norm import NormSpec
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec, EmbeddingSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.gpt2 import GPT2_MODULES
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.naming import grouped_heads, renamed, stacked_heads
from quire_engine.models.settings import Config, activation, flag, number, refuse


def gpt_bigcode(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    refuse(config, "add_cross_attention", False)
    refuse(config, "scale_attn_weights", True)
    shape = ModelShape.from_config(config)
    layer = LayerSpec(
        attention=AttentionSpec(qkv_bias=True, output_bias=True),
        mlp=MLPSpec(activation=activation(config, "activation_function", "gelu_pytorch_tanh"), gated=False, bias=True),
        norm=NormSpec("layer", number(config, "layer_norm_epsilon", 1e-5)),
    )
    shared = flag(config, "multi_query", True)
    fused = stacked_heads("attn.c_attn", shape) if shared else grouped_heads("attn.c_attn", shape)
    return DecoderSpec.of(
        config,
        layer,
        embedding=EmbeddingSpec(learned_positions=shape.max_position_embeddings),
        naming=renamed(GPT2_MODULES, layers="transformer.h.", fused=fused, otherwise={"transformer.": ""}),
    )
