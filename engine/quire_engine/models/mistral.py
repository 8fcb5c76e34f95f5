"""Mistral 7B and its kin: the plain decoder, where every layer, or some of them, may see a sliding window only."""

from __future__ import annotations

from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.llama import llama_layer, rope_of
from quire_engine.models.settings import Config, layer_kinds, optional_window


def mistral(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    attention = AttentionSpec(rope=rope_of(config), window=optional_window(config))
    return DecoderSpec.of(config, llama_layer(config, attention))


def ministral(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    window, rope = optional_window(config), rope_of(config)
    kinds = layer_kinds(config) if "layer_types" in config else ("sliding_attention",) * len(layer_kinds(config))
    windows = [window if kind == "sliding_attention" else None for kind in kinds]
    return DecoderSpec.of(config, tuple(llama_layer(config, AttentionSpec(rope=rope, window=w)) for w in windows))
