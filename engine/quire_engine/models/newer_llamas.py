"""Models that differ from Llama in a detail: Ernie 4.5, Arcee's AFM and Seed-OSS."""

from __future__ import annotations

from dataclasses import replace

from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.llama import llama_attention, llama_layer, rope_of
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.settings import Config, activation, flag


def ernie(config: Config) -> DecoderSpec:
    """Neighbours are rotated. Raises `ValueError` that names what is not supported."""
    bias = flag(config, "use_bias", False)
    rope = rope_of({"rope_theta": 500_000.0, **config}, interleaved=True)
    attention = AttentionSpec(rope=rope, qkv_bias=bias, output_bias=bias)
    return DecoderSpec.of(config, llama_layer({"rms_norm_eps": 1e-5, **config, "mlp_bias": bias}, attention))


def arcee(config: Config) -> DecoderSpec:
    """A plain MLP with squared ReLU. Raises `ValueError` that names what is not supported."""
    config = {"rms_norm_eps": 1e-5, "hidden_act": "relu2", **config}
    bias = flag(config, "mlp_bias", False)
    mlp = MLPSpec(activation=activation(config, "hidden_act", "relu2"), gated=False, bias=bias)
    return DecoderSpec.of(config, replace(llama_layer(config, llama_attention(config)), mlp=mlp))


def seed_oss(config: Config) -> DecoderSpec:
    """Biases on q, k and v apart from those of the output. Raises `ValueError` that names what is not supported."""
    attention = AttentionSpec(
        rope=rope_of(config),
        qkv_bias=flag(config, "attention_bias", True),
        output_bias=flag(config, "attention_out_bias", False),
    )
    return DecoderSpec.of(config, llama_layer(config, attention))
