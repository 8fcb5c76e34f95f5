"""Qwen3: the heads of q and k are normalised before they are rotated."""

from __future__ import annotations

from dataclasses import replace

from quire_engine.layers.norm import HeadNormSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.llama import llama_attention, llama_layer, rms_norm
from quire_engine.models.qwen2 import qwen_windows
from quire_engine.models.settings import Config


def qwen3(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    attention = replace(llama_attention(config), qk_norm=HeadNormSpec("head", rms_norm(config)))
    windows = qwen_windows(config)
    return DecoderSpec.of(config, tuple(llama_layer(config, replace(attention, window=w)) for w in windows))
