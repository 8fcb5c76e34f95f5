"""Phi-4-multimodal: Phi-4-mini behind an encoder of images. Its encoder of sounds is not loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from quire_engine.layers.adapter import DOWN, UP
from quire_engine.memory_plan.config_fields import positive_int
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.naming import Naming, Source
from quire_engine.models.phi3 import phi3
from quire_engine.models.phi4_vision import Phi4Vision
from quire_engine.models.settings import Config, activation, number, refuse
from quire_engine.models.siglip import SiglipSpec

_SIDE = 32  # patches: the image processor counts tokens as if it were no other
_IMAGES = "model.embed_tokens_extend.image_embed."
_SOUNDS = "model.embed_tokens_extend.audio_embed."
_NAMES = {
    "vision.tower.": f"{_IMAGES}img_processor.",
    "vision.projection_up.": f"{_IMAGES}img_projection_up.",
    "vision.projection_down.": f"{_IMAGES}img_projection_down.",
    "vision.line_end": f"{_IMAGES}sub_img_feature_extensor",
    "vision.between": f"{_IMAGES}global_img_feature_extensor",
}
# As peft calls them.
_ADAPTER = {DOWN: "lora_A", UP: "lora_B"}


def phi4_multimodal(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    spec = phi3(config)
    naming = replace(
        spec.naming,
        source=_source(spec.naming),
        unused_prefixes=(_SOUNDS, f"{_IMAGES}img_processor.post_layernorm.", f"{_IMAGES}img_processor.head."),
    )
    return replace(spec, naming=naming, vision=_vision(config, spec.shape.vocab_size))


def _source(naming: Naming) -> Callable[[str], Source]:
    def source(name: str) -> Source:
        found = next((ours for ours in _NAMES if name.startswith(ours)), None)
        if found is not None:
            return Source(_NAMES[found] + name.removeprefix(found))
        module, _, tensor = name.rpartition(".")
        if tensor not in _ADAPTER:
            return naming.source(name)
        weight = naming.source(f"{module}.weight")
        stored = f"base_model.model.{weight.name.removesuffix('weight')}{_ADAPTER[tensor]}.weight"
        return Source(stored, weight.rows if tensor == UP else None)

    return source


def _vision(config: Config, vocab_size: int) -> Phi4Vision:
    found = config.get("vision_config")
    if not isinstance(found, dict):
        raise ValueError(f"config.json: vision_config is {found!r}: it must be an object")
    refuse(found, "num_channels", 3)
    tower = SiglipSpec(
        hidden_size=positive_int(found, "hidden_size", default=1152),
        intermediate_size=positive_int(found, "intermediate_size", default=4304),
        num_layers=positive_int(found, "num_hidden_layers", default=27),
        num_heads=positive_int(found, "num_attention_heads", default=16),
        image_size=positive_int(found, "image_size", default=448),
        patch_size=positive_int(found, "patch_size", default=14),
        activation=activation(found, "hidden_act", "gelu_pytorch_tanh"),
        eps=number(found, "layer_norm_eps", 1e-6),
    )
    if tower.hidden_size % tower.num_heads:
        raise ValueError(
            f"config.json: vision_config.hidden_size is {tower.hidden_size}: {tower.num_heads} heads do not divide it"
        )
    if tower.image_size != _SIDE * tower.patch_size:
        raise ValueError(
            f"config.json: vision_config.image_size is {tower.image_size}: it must be {_SIDE} times its patch_size, "
            f"{tower.patch_size}"
        )
    refuse(found, "crop_size", tower.image_size)
    layer = found.get("feature_layer", -2)
    if not isinstance(layer, int) or not -tower.num_layers - 1 <= layer <= tower.num_layers:
        raise ValueError(
            f"config.json: vision_config.feature_layer is {layer!r}: it must be between {-tower.num_layers - 1} and "
            f"{tower.num_layers}"
        )
    token = found.get("image_token_id", 200010)
    if not isinstance(token, int) or not 0 <= token < vocab_size:
        raise ValueError(
            f"config.json: vision_config.image_token_id is {token!r}: it must be a token, below {vocab_size}"
        )
    return Phi4Vision(tower=tower, layer=layer + tower.num_layers + 1 if layer < 0 else layer, token_id=token)
