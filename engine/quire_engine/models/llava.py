"""LLaVA 1.5: a CLIP tower in front of Llama, Qwen2, or Mistral as in BakLLaVA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from quire_engine.memory_plan.image_encoders import ClipSizes
from quire_engine.models.clip import ClipSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.llama import llama
from quire_engine.models.llava_vision import LlavaVision
from quire_engine.models.mistral import mistral
from quire_engine.models.naming import Naming, Source
from quire_engine.models.qwen2 import qwen2
from quire_engine.models.settings import Config, activation, flag, number, refuse

_LARGEST = 4096  # pixels of a side
_DECODERS: dict[str, Callable[[Config], DecoderSpec]] = {"llama": llama, "mistral": mistral, "qwen2": qwen2}
_NAMES = {
    "model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "vision.tower.": "vision_tower.vision_model.",
    "vision.projector.": "multi_modal_projector.",
    "vision.newline": "image_newline",
}
# What other versions of transformers write.
_OTHERWISE = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "vision_tower.vision_model.": "vision_tower.",
    "vision_tower.": "model.vision_tower.vision_model.",
    "model.vision_tower.vision_model.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
    "image_newline": "model.image_newline",
}


def llava(config: Config) -> DecoderSpec:
    """Of a normalised config.json, which has the decoder's sizes beside its own settings.

    Raises `ValueError` that names what is not supported.
    """
    text = config["text_config"]
    assert isinstance(text, dict)  # it was read from there
    spec = _DECODERS[str(text.get("model_type", "llama"))](config)
    naming = Naming(_source, otherwise=_OTHERWISE)
    naming = replace(naming, unused=(*naming.unused, "post_layernorm.weight", "post_layernorm.bias"))
    return replace(spec, naming=naming, vision=llava_vision(config, spec.shape.vocab_size))


def _source(name: str) -> Source:
    ours, theirs = next((a, b) for a, b in _NAMES.items() if name.startswith(a))
    return Source(theirs + name.removeprefix(ours))


def llava_vision(config: Config, vocab_size: int) -> LlavaVision:
    """What config.json says of the encoder. Raises `ValueError` as `llava` does."""
    sizes = ClipSizes.of(config)
    found = config["vision_config"]
    assert isinstance(found, dict)  # it was read from there
    refuse(found, "model_type", "clip_vision_model")
    tower = ClipSpec(
        **vars(sizes),
        activation=activation(found, "hidden_act", "quick_gelu"),
        eps=number(found, "layer_norm_eps", 1e-5),
    )
    if tower.channels != 3:
        raise ValueError(f"config.json: vision_config.num_channels is {tower.channels}: only 3 is supported")
    if tower.hidden_size % tower.num_heads:
        raise ValueError(
            f"config.json: vision_config.hidden_size is {tower.hidden_size}: {tower.num_heads} heads do not divide it"
        )
    if tower.image_size > _LARGEST:
        raise ValueError(f"config.json: vision_config.image_size is {tower.image_size}: it must be at most {_LARGEST}")
    if tower.patch_size > tower.image_size:
        raise ValueError(
            f"config.json: vision_config.patch_size is {tower.patch_size}: it must be at most {tower.image_size}, "
            "its image_size"
        )
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise ValueError(f"config.json: vision_feature_select_strategy is {strategy!r}: it must be default or full")
    token = config.get("image_token_index", config.get("image_token_id", 32000))
    if not isinstance(token, int) or not 0 <= token < vocab_size:
        raise ValueError(f"config.json: image_token_index is {token!r}: it must be a token, below {vocab_size}")
    return LlavaVision(
        tower=tower,
        layers=_layers(config, tower.num_layers),
        with_class=strategy == "full",
        token_id=token,
        activation=activation(config, "projector_hidden_act", "gelu"),
        bias=flag(config, "multimodal_projector_bias", True),
    )


def _layers(config: Config, num_layers: int) -> tuple[int, ...]:
    """`vision_feature_layer`, a number or several, counted from the end where it is below 0."""
    given = config.get("vision_feature_layer", -2)
    several = given if isinstance(given, list) else [given]
    numbers = [n for n in several if isinstance(n, int) and -num_layers - 1 <= n <= num_layers]
    if not several or len(numbers) < len(several):
        raise ValueError(
            f"config.json: vision_feature_layer is {given!r}: it must be between {-num_layers - 1} and {num_layers}, "
            "or a list of such numbers"
        )
    return tuple(n + num_layers + 1 if n < 0 else n for n in numbers)
