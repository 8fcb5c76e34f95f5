"""OLMo: the first with norms without parameters and clipped projections; OLMo-2 with norms behind each part."""

from __future__ import annotations

from dataclasses import replace

from quire_engine.layers.norm import HeadNormSpec, NormSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.llama import llama_attention, llama_layer, rms_norm
from quire_engine.models.settings import Config, optional_number


def olmo(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    attention = replace(llama_attention(config), clip=optional_number(config, "clip_qkv", None))
    norm = NormSpec("layer without parameters", 1e-5)
    return DecoderSpec.of(config, replace(llama_layer(config, attention), norm=norm))


def olmo2(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    config = {**config, "rms_norm_eps": config.get("rms_norm_eps", 1e-5)}
    attention = replace(llama_attention(config), qk_norm=HeadNormSpec("all heads", rms_norm(config)))
    return DecoderSpec.of(config, replace(llama_layer(config, attention), arrangement="output"))
