"""Nemotron and Minitron: LayerNorm that adds one, squared ReLU, half of each head rotated."""

from __future__ import annotations

from quire_engine.layers.norm import NormSpec
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.llama import rope_of
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.settings import Config, activation, flag, number


def nemotron(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    bias = flag(config, "attention_bias", False)
    mlp = MLPSpec(
        activation=activation(config, "hidden_act", "relu2"), gated=False, bias=flag(config, "mlp_bias", False)
    )
    layer = LayerSpec(
        attention=AttentionSpec(
            rope=rope_of({"partial_rotary_factor": 0.5, **config}), qkv_bias=bias, output_bias=bias
        ),
        mlp=mlp,
        norm=NormSpec("offset layer", number(config, "norm_eps", 1e-5)),
    )
    return DecoderSpec.of(config, layer)
