"""Qwen2 and Qwen2.5: biases on q, k and v, and a sliding window on some layers where asked for."""

from __future__ import annotations

from dataclasses import replace

from quire_engine.memory_plan.config_fields import positive_int
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.llama import llama_layer, rope_of
from quire_engine.models.settings import Config, layer_kinds


def qwen2(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    attention = AttentionSpec(rope=rope_of(config), qkv_bias=True)
    windows = qwen_windows(config)
    return DecoderSpec.of(config, tuple(llama_layer(config, replace(attention, window=w)) for w in windows))


def qwen_windows(config: Config) -> tuple[int | None, ...]:
    """The window of each layer: as `layer_types` says, else on the layers from `max_window_layers` on."""
    num_layers = positive_int(config, "num_hidden_layers")
    if not config.get("use_sliding_window", False) or config.get("sliding_window") is None:
        return (None,) * num_layers
    window = positive_int(config, "sliding_window")
    if config.get("layer_types") is not None:
        return tuple(window if kind == "sliding_attention" else None for kind in layer_kinds(config))
    first = config.get("max_window_layers", num_layers)
    return tuple(window if isinstance(first, int) and i >= first else None for i in range(num_layers))
