"""Llama 1 to 3: the plain decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from quire_engine.models.decoder import DecoderSpec


def llama(config: Mapping[str, object]) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    attention_bias = bool(config.get("attention_bias", False))
    return replace(
        DecoderSpec.from_config(config),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
    )
