"""GPT-2: learned positions, and weights that are stored turned."""

from __future__ import annotations

from quire_engine.layers.norm import NormSpec
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec, EmbeddingSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.naming import renamed, stacked_heads
from quire_engine.models.settings import Config, activation, flag, number, refuse

GPT2_MODULES = {
    "model.embed_tokens": "transformer.wte",
    "model.embed.positions": "transformer.wpe",
    "model.norm": "transformer.ln_f",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "self_attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}
_HEADS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def gpt2(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    refuse(config, "add_cross_attention", False)
    shape = ModelShape.from_config(config)
    scale = shape.head_dim**-0.5 if flag(config, "scale_attn_weights", True) else 1.0
    by_layer = flag(config, "scale_attn_by_inverse_layer_idx", False)
    mlp = MLPSpec(activation=activation(config, "activation_function", "gelu_new"), gated=False, bias=True)
    norm = NormSpec("layer", number(config, "layer_norm_epsilon", 1e-5))
    layers = []
    for i in range(shape.num_layers):
        own = scale / (i + 1) if by_layer else scale
        attention = AttentionSpec(scale=own, qkv_bias=True, output_bias=True)
        layers.append(LayerSpec(attention=attention, mlp=mlp, norm=norm))
    naming = renamed(
        GPT2_MODULES,
        layers="transformer.h.",
        fused=stacked_heads("attn.c_attn", shape),
        transposed=(*_HEADS, "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"),
        otherwise={"transformer.": ""},
    )
    return DecoderSpec.of(
        config,
        tuple(layers),
        embedding=EmbeddingSpec(learned_positions=shape.max_position_embeddings),
        naming=naming,
    )
