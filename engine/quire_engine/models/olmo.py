"""OLMo: the first with norms without parameters and clipped projections; OLMo-2 and 3 with norms behind each part."""

from __future__ import annotations

from dataclasses import replace

from quire_engine.layers.norm import HeadNormSpec, NormSpec
from quire_engine.memory_plan.config_fields import positive_int
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.llama import llama_attention, llama_layer, rms_norm, rope_of
from quire_engine.models.settings import Config, layer_kinds, optional_number


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


def olmo3(config: Config) -> DecoderSpec:
    """OLMo-2 with layers that alternate: those that slide have a rope that is not stretched."""
    config = {"rms_norm_eps": 1e-5, "rope_theta": 500_000.0, **config}
    attention = replace(llama_attention(config), qk_norm=HeadNormSpec("all heads", rms_norm(config)))
    nested = isinstance(config.get("rope_parameters"), dict)
    local = rope_of(config if nested else {**config, "rope_scaling": None}, kind="sliding_attention")
    window = positive_int(config, "sliding_window", default=4096)
    kinds = {"full_attention": attention, "sliding_attention": replace(attention, rope=local, window=window)}
    return DecoderSpec.of(
        config,
        tuple(replace(llama_layer(config, kinds[kind]), arrangement="output") for kind in layer_kinds(config, every=4)),
    )
