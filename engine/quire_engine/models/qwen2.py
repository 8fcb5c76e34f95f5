"""Qwen2 and Qwen2.5: biases on q, k and v, and a sliding window on some layers where asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from quire_engine.memory_plan.model_shape import positive_int
from quire_engine.models.decoder import DecoderSpec


def qwen2(config: Mapping[str, object]) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    return replace(DecoderSpec.from_config(config, windows=qwen_windows(config)), qkv_bias=True)


def qwen_windows(config: Mapping[str, object]) -> tuple[int | None, ...]:
    """The window of each layer: as `layer_types` says, else on the layers from `max_window_layers` on."""
    num_layers = positive_int(config, "num_hidden_layers")
    if not config.get("use_sliding_window", False) or config.get("sliding_window") is None:
        return (None,) * num_layers
    window = positive_int(config, "sliding_window")
    layer_types = config.get("layer_types")
    if isinstance(layer_types, list) and len(layer_types) == num_layers:
        return tuple(window if kind == "sliding_attention" else None for kind in layer_types)
    first = config.get("max_window_layers", num_layers)
    return tuple(window if isinstance(first, int) and i >= first else None for i in range(num_layers))
