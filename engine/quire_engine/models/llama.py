"""Llama 1 to 3, Yi and DeepSeek's dense models: the plain decoder."""

from __future__ import annotations

from quire_engine.layers.norm import NormSpec
from quire_engine.layers.rotary import RopeSettings
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.decoder_layer import LayerSpec, MixerSpec
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.settings import Config, activation, flag, number


def llama(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    return DecoderSpec.of(config, llama_layer(config, llama_attention(config)))


def llama_attention(config: Config) -> AttentionSpec:
    """Whole rotation, and biases everywhere or nowhere."""
    bias = flag(config, "attention_bias", False)
    return AttentionSpec(rope=rope_of(config), qkv_bias=bias, output_bias=bias)


def llama_layer(config: Config, attention: MixerSpec) -> LayerSpec:
    """`attention` and a gated MLP, with RMSNorm before each."""
    mlp = MLPSpec(activation=activation(config, "hidden_act", "silu"), bias=flag(config, "mlp_bias", False))
    return LayerSpec(attention=attention, mlp=mlp, norm=rms_norm(config))


def rms_norm(config: Config) -> NormSpec:
    return NormSpec("rms", number(config, "rms_norm_eps", 1e-6))


def rope_of(config: Config, *, kind: str = "full_attention", interleaved: bool = False) -> RopeSettings:
    """The rotary embedding of the layers of `kind`."""
    shape = ModelShape.from_config(config)
    return RopeSettings.from_config(
        config, shape.head_dim, shape.max_position_embeddings, kind=kind, interleaved=interleaved
    )
