"""Qwen2-VL: Qwen2 behind an encoder of images, with positions by time, height and width. It takes no films here."""

from __future__ import annotations

from dataclasses import replace

from quire_engine.layers.rotary import RopeSettings
from quire_engine.memory_plan.config_fields import positive_int
from quire_engine.memory_plan.context_length import rope_parameters
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.llama import llama_layer, rope_of
from quire_engine.models.naming import Naming, Source
from quire_engine.models.qwen2 import qwen_windows
from quire_engine.models.qwen2_vision import Qwen2Vision
from quire_engine.models.settings import Config, activation, number, refuse

_USUAL_SECTIONS = [16, 24, 24]
# What other versions of transformers write.
_OTHERWISE = {
    "visual.": "model.visual.",
    "model.embed_tokens.": "model.language_model.embed_tokens.",
    "model.layers.": "model.language_model.layers.",
    "model.norm.": "model.language_model.norm.",
}


def qwen2_vl(config: Config) -> DecoderSpec:
    """Of a normalised config.json, which has the decoder's sizes beside its own settings.

    Raises `ValueError` that names what is not supported.
    """
    attention = AttentionSpec(rope=_rope(config), qkv_bias=True)
    layers = tuple(llama_layer(config, replace(attention, window=window)) for window in qwen_windows(config))
    spec = DecoderSpec.of(config, layers, naming=Naming(_source, otherwise=_OTHERWISE))
    return replace(spec, vision=_vision(config, spec.shape.vocab_size, spec.shape.hidden_size))


def _source(name: str) -> Source:
    return Source("visual." + name.removeprefix("vision.") if name.startswith("vision.") else name)


def _rope(config: Config) -> RopeSettings:
    """As of a text, with the pairs that each axis turns. Older files call the type mrope."""
    parameters = rope_parameters(config, "full_attention")
    if parameters["rope_type"] == "mrope":
        parameters["rope_type"] = "default"
    rope = rope_of({**config, "rope_parameters": parameters})
    if rope.by_length is not None:
        raise ValueError(
            f"config.json: rope_type is {parameters['rope_type']!r}, whose angles depend on a text's length: that is "
            "not supported with images, use default, linear, yarn or llama3"
        )
    sections = parameters.get("mrope_section", _USUAL_SECTIONS)
    if (
        not isinstance(sections, list)
        or len(sections) != len(_USUAL_SECTIONS)
        or not all(isinstance(n, int) and n >= 0 for n in sections)
        or sum(sections) != rope.dim // 2
    ):
        raise ValueError(
            f"config.json: mrope_section is {sections!r}: it must be three numbers of pairs, {rope.dim // 2} in all"
        )
    return replace(rope, axes=tuple(sections))


def _vision(config: Config, vocab_size: int, decoder_size: int) -> Qwen2Vision:
    found = config.get("vision_config")
    if not isinstance(found, dict):
        raise ValueError(f"config.json: vision_config is {found!r}: it must be an object")
    refuse(found, "in_channels", 3)
    refuse(found, "hidden_size", decoder_size)
    size = positive_int(found, "embed_dim", default=1280)
    heads = positive_int(found, "num_heads", default=16)
    if size % (4 * heads):
        raise ValueError(f"config.json: vision_config.embed_dim is {size}: it must be a multiple of 4 x {heads} heads")
    rope = found.get("rope_parameters")
    token = config.get("image_token_id", 151655)
    if not isinstance(token, int) or not 0 <= token < vocab_size:
        raise ValueError(f"config.json: image_token_id is {token!r}: it must be a token, below {vocab_size}")
    return Qwen2Vision(
        hidden_size=size,
        intermediate_size=size * positive_int(found, "mlp_ratio", default=4),
        num_layers=positive_int(found, "depth", default=32),
        num_heads=heads,
        patch_size=positive_int(found, "patch_size", default=14),
        merge_size=positive_int(found, "spatial_merge_size", default=2),
        frames=positive_int(found, "temporal_patch_size", default=2),
        activation=activation(found, "hidden_act", "quick_gelu"),
        rope_theta=number(rope if isinstance(rope, dict) else {}, "rope_theta", 10000.0),
        token_id=token,
    )
