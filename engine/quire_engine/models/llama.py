"""Llama 1 to 3, Yi and DeepSeek's dense models: the plain decoder."""

from __future__ import annotations

from quire_engine.layers.norm import HeadNormSpec, NormSpec
from quire_engine.layers.rotary import RopeSettings
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.settings import Config, activation, flag, number


def llama(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    bias = flag(config, "attention_bias", False)
    return DecoderSpec.of(config, llama_layer(config, qkv_bias=bias, output_bias=bias))


def llama_layer(
    config: Config,
    *,
    window: int | None = None,
    qkv_bias: bool = False,
    output_bias: bool = False,
    qk_norm: HeadNormSpec | None = None,
) -> LayerSpec:
    """A layer with RMSNorm before each part, whole rotation, and a gated MLP."""
    rope = rope_of(config)
    return LayerSpec(
        attention=AttentionSpec(rope=rope, window=window, qkv_bias=qkv_bias, output_bias=output_bias, qk_norm=qk_norm),
        mlp=MLPSpec(activation=activation(config, "hidden_act", "silu"), bias=flag(config, "mlp_bias", False)),
        norm=rms_norm(config),
    )


def rms_norm(config: Config) -> NormSpec:
    return NormSpec("rms", number(config, "rms_norm_eps", 1e-6))


def rope_of(config: Config, *, kind: str = "full_attention", interleaved: bool = False) -> RopeSettings:
    """The rotary embedding of the layers of `kind`."""
    shape = ModelShape.from_config(config)
    return RopeSettings.from_config(
        config, shape.head_dim, shape.max_position_embeddings, kind=kind, interleaved=interleaved
    )
