"""Command-R (Cohere) and Command-R7B (Cohere2): a parallel block, neighbours rotated, scaled logits."""

from __future__ import annotations

from dataclasses import replace

from quire_engine.layers.norm import HeadNormSpec, NormSpec
from quire_engine.memory_plan.config_fields import positive_int
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.llama import rope_of
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.settings import Config, activation, flag, layer_kinds, number


def cohere(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    layer = _layer(config, _attention(config))
    return DecoderSpec.of(config, layer, logit_multiplier=number(config, "logit_scale", 0.0625))


def cohere2(config: Config) -> DecoderSpec:
    """Layers that see everything have no rotation. Raises `ValueError` that names what is not supported."""
    window = positive_int(config, "sliding_window", default=4096)
    every = positive_int(config, "sliding_window_pattern", default=4)
    kinds = {
        "full_attention": _layer(config, replace(_attention(config), rope=None)),
        "sliding_attention": _layer(config, replace(_attention(config), window=window)),
    }
    layers = tuple(kinds[kind] for kind in layer_kinds(config, every=every))
    return DecoderSpec.of(config, layers, logit_multiplier=number(config, "logit_scale", 0.0625))


def _attention(config: Config) -> AttentionSpec:
    bias = flag(config, "attention_bias", False)
    return AttentionSpec(
        rope=rope_of(config, interleaved=True),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=HeadNormSpec("each head", _norm(config)) if flag(config, "use_qk_norm", False) else None,
    )


def _layer(config: Config, attention: AttentionSpec) -> LayerSpec:
    mlp = MLPSpec(activation=activation(config, "hidden_act", "silu"))
    return LayerSpec(attention=attention, mlp=mlp, norm=_norm(config), arrangement="parallel")


def _norm(config: Config) -> NormSpec:
    return NormSpec("layer without bias", number(config, "layer_norm_eps", 1e-5))
