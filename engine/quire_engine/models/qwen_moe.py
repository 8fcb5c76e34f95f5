"""Qwen2-MoE, Qwen3-MoE and OLMoE: experts in all or some layers."""

from __future__ import annotations

from dataclasses import replace

from quire_engine.layers.norm import HeadNormSpec
from quire_engine.layers.routing import RouterSpec
from quire_engine.memory_plan.config_fields import positive_int
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.llama import llama_attention, llama_layer, rms_norm, rope_of
from quire_engine.models.moe_block import MoESpec
from quire_engine.models.naming import Naming, Source
from quire_engine.models.qwen2 import qwen_windows
from quire_engine.models.settings import Config, activation, flag, number, refuse


def qwen2_moe(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    size = positive_int(config, "shared_expert_intermediate_size", default=5632)
    experts = replace(_experts(config), shared_size=size, shared_gate=True)
    attention = AttentionSpec(rope=rope_of(config), qkv_bias=flag(config, "qkv_bias", True))
    naming = Naming(lambda name: Source(name.replace(".shared_experts.", ".shared_expert.")))
    windows = qwen_windows({**config, "max_window_layers": 0})
    if config.get("layer_types") is None:  # every other layer slides, unlike in Qwen2
        last = number(config, "max_window_layers", len(windows))
        windows = tuple(window if i % 2 == 0 and i < last else None for i, window in enumerate(windows))
    return DecoderSpec.of(config, _layers(config, attention, experts, windows), naming=naming)


def qwen3_moe(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    attention = replace(llama_attention(config), qk_norm=HeadNormSpec("head", rms_norm(config)))
    windows = qwen_windows({**config, "max_window_layers": 0})  # which counts for nothing here
    return DecoderSpec.of(config, _layers(config, attention, _experts(config), windows))


def olmoe(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    refuse(config, "clip_qkv", None)
    attention = replace(llama_attention(config), qk_norm=HeadNormSpec("all heads", rms_norm(config)))
    experts = _experts(config, positive_int(config, "intermediate_size"))
    return DecoderSpec.of(config, replace(llama_layer(config, attention), mlp=experts))


def _experts(config: Config, size: int | None = None) -> MoESpec:
    return MoESpec(
        router=RouterSpec(
            num_experts=positive_int(config, "num_experts"),
            top_k=positive_int(config, "num_experts_per_tok"),
            renormalised=flag(config, "norm_topk_prob", False),
        ),
        inner_size=size or positive_int(config, "moe_intermediate_size"),
        activation=activation(config, "hidden_act", "silu"),
    )


def _layers(
    config: Config, attention: AttentionSpec, experts: MoESpec, windows: tuple[int | None, ...]
) -> tuple[LayerSpec, ...]:
    """Experts in every `decoder_sparse_step`-th layer, but for those in `mlp_only_layers`."""
    step = positive_int(config, "decoder_sparse_step", default=1)
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise ValueError(f"config.json: mlp_only_layers is {dense!r}: it must be a list of layers")
    layers = [llama_layer(config, replace(attention, window=window)) for window in windows]
    return tuple(
        layer if i in dense or (i + 1) % step else replace(layer, mlp=experts) for i, layer in enumerate(layers)
    )
