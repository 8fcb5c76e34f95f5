"""BLOOM: ALiBi, and a norm behind the embedding."""

from __future__ import annotations

from quire_engine.layers.norm import NormSpec
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.models.attention_block import AlibiSpec, AttentionSpec
from quire_engine.models.decoder import DecoderSpec, EmbeddingSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.naming import grouped_heads, renamed
from quire_engine.models.settings import Config, number, refuse


def bloom(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    refuse(config, "apply_residual_connection_post_layernorm", False)
    norm = NormSpec("layer", number(config, "layer_norm_epsilon", 1e-5))
    layer = LayerSpec(
        attention=AttentionSpec(alibi=AlibiSpec(), qkv_bias=True, output_bias=True),
        mlp=MLPSpec(activation="gelu_new", gated=False, bias=True),
        norm=norm,
    )
    naming = renamed(
        {
            "model.embed_tokens": "transformer.word_embeddings",
            "model.embed.norm": "transformer.word_embeddings_layernorm",
            "model.norm": "transformer.ln_f",
            "self_attn.o_proj": "self_attention.dense",
            "mlp.up_proj": "mlp.dense_h_to_4h",
            "mlp.down_proj": "mlp.dense_4h_to_h",
        },
        layers="transformer.h.",
        fused=grouped_heads("self_attention.query_key_value", ModelShape.from_config(config)),
        otherwise={"transformer.": ""},
    )
    return DecoderSpec.of(config, layer, embedding=EmbeddingSpec(norm=norm), naming=naming)
