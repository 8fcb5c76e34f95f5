"""Qwen3: the heads of q and k are normalised before they are rotated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.qwen2 import qwen_windows


def qwen3(config: Mapping[str, object]) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    attention_bias = bool(config.get("attention_bias", False))
    spec = DecoderSpec.from_config({"head_dim": 128, **config}, windows=qwen_windows(config))
    return replace(spec, qkv_bias=attention_bias, output_bias=attention_bias, qk_norm=True)
