"""Gemma 1 to 3, the text models: scaled embeddings, norms that add one, soft-capped scores, layers that alternate."""

from __future__ import annotations

from dataclasses import replace

from quire_engine.layers.norm import HeadNormSpec, NormSpec
from quire_engine.memory_plan.config_fields import positive_int
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec, EmbeddingSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.llama import rope_of
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.settings import Config, activation, flag, layer_kinds, number, optional_number, refuse


def gemma(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    # The first checkpoints say gelu and mean its approximation.
    named = "hidden_activation" if config.get("hidden_activation") else "hidden_act"
    chosen = activation(config, named, "gelu_pytorch_tanh")
    return DecoderSpec.of(
        config,
        LayerSpec(
            attention=_attention(config),
            mlp=MLPSpec(activation="gelu_pytorch_tanh" if chosen == "gelu" else chosen),
            norm=_norm(config),
        ),
        embedding=_embedding(config),
    )


def gemma2(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    attention = replace(_attention(config), softcap=optional_number(config, "attn_logit_softcapping", 50.0))
    return _alternating(config, {"full_attention": attention, "sliding_attention": attention}, every=2, softcap=30.0)


def gemma3(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    attention = replace(
        _attention(config),
        softcap=optional_number(config, "attn_logit_softcapping", None),
        qk_norm=HeadNormSpec("head", _norm(config)),
    )
    nested = isinstance(config.get("rope_parameters"), dict)
    # Older files have one base for each kind of layer beside each other, and scale those that see everything.
    theta = config.get("rope_local_base_freq") or 10_000.0
    local = config if nested else {**config, "rope_theta": theta, "rope_scaling": None}
    whole = config if nested else {"rope_theta": 1_000_000.0, **config}
    kinds = {
        "full_attention": replace(attention, rope=rope_of(whole)),
        "sliding_attention": replace(attention, rope=rope_of(local, kind="sliding_attention")),
    }
    every = positive_int(config, "sliding_window_pattern", default=6)
    return _alternating(config, kinds, every=every, softcap=None)


def _alternating(config: Config, kinds: dict[str, AttentionSpec], *, every: int, softcap: float | None) -> DecoderSpec:
    window = positive_int(config, "sliding_window", default=4096)
    kinds["sliding_attention"] = replace(kinds["sliding_attention"], window=window)
    mlp = MLPSpec(activation=activation(config, "hidden_activation", "gelu_pytorch_tanh"))
    return DecoderSpec.of(
        config,
        tuple(
            LayerSpec(attention=kinds[kind], mlp=mlp, norm=_norm(config), arrangement="sandwich")
            for kind in layer_kinds(config, every=every)
        ),
        embedding=_embedding(config),
        logit_softcap=optional_number(config, "final_logit_softcapping", softcap),
    )


def _attention(config: Config) -> AttentionSpec:
    if config.get("use_bidirectional_attention"):
        refuse(config, "use_bidirectional_attention", False)
    bias = flag(config, "attention_bias", False)
    scalar = optional_number(config, "query_pre_attn_scalar", None)
    if scalar is not None and scalar <= 0:
        raise ValueError(f"config.json: query_pre_attn_scalar is {scalar}: it must be above 0")
    scale = None if scalar is None else scalar**-0.5
    return AttentionSpec(rope=rope_of(config), scale=scale, qkv_bias=bias, output_bias=bias)


def _norm(config: Config) -> NormSpec:
    return NormSpec("offset rms", number(config, "rms_norm_eps", 1e-6))


def _embedding(config: Config) -> EmbeddingSpec:
    return EmbeddingSpec(multiplier=positive_int(config, "hidden_size") ** 0.5, rounded=True)
