"""Qwen3: the heads of q and k are normalised before they are rotated."""

from __future__ import annotations

from quire_engine.layers.norm import HeadNormSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.llama import llama_layer, rms_norm
from quire_engine.models.qwen2 import qwen_windows
from quire_engine.models.settings import Config, flag


def qwen3(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    bias, qk_norm = flag(config, "attention_bias", False), HeadNormSpec("head", rms_norm(config))
    return DecoderSpec.of(
        config,
        tuple(
            llama_layer(config, window=window, qkv_bias=bias, output_bias=bias, qk_norm=qk_norm)
            for window in qwen_windows(config)
        ),
    )
