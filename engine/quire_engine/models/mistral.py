"""Mistral 7B and its kin: the plain decoder, where every layer may see a sliding window only."""

from __future__ import annotations

from quire_engine.memory_plan.architectures import positive_int
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.llama import llama_layer, rope_of
from quire_engine.models.settings import Config


def mistral(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    window = None if config.get("sliding_window") is None else positive_int(config, "sliding_window")
    return DecoderSpec.of(config, llama_layer(config, AttentionSpec(rope=rope_of(config), window=window)))
