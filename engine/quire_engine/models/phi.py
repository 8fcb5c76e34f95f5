"""Phi-1, Phi-1.5 and Phi-2: a parallel block, part of each head rotated, biases everywhere."""

from __future__ import annotations

from quire_engine.layers.norm import HeadNormSpec, NormSpec
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.llama import rope_of
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.naming import renamed
from quire_engine.models.settings import Config, activation, flag, number


def phi(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    norm = NormSpec("layer", number(config, "layer_norm_eps", 1e-5))
    layer = LayerSpec(
        attention=AttentionSpec(
            rope=rope_of({"partial_rotary_factor": 0.5, **config}),
            qkv_bias=True,
            output_bias=True,
            qk_norm=HeadNormSpec("head", norm) if flag(config, "qk_layernorm", False) else None,
        ),
        mlp=MLPSpec(activation=activation(config, "hidden_act", "gelu_new"), gated=False, bias=True),
        norm=norm,
        arrangement="parallel",
    )
    naming = renamed(
        {
            "model.norm": "model.final_layernorm",
            "self_attn.o_proj": "self_attn.dense",
            "self_attn.q_norm": "self_attn.q_layernorm",
            "self_attn.k_norm": "self_attn.k_layernorm",
            "mlp.up_proj": "mlp.fc1",
            "mlp.down_proj": "mlp.fc2",
        }
    )
    return DecoderSpec.of(config, layer, head_bias=True, naming=naming)
