"""SmolLM3: the plain decoder, with layers that know no positions."""

from __future__ import annotations

from dataclasses import replace

from quire_engine.memory_plan.config_fields import positive_int
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.llama import llama_attention, llama_layer
from quire_engine.models.qwen2 import qwen_windows
from quire_engine.models.settings import Config


def smollm3(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    attention = llama_attention({"rope_theta": 2_000_000.0, **config})
    num_layers = positive_int(config, "num_hidden_layers")
    rotates = config.get("no_rope_layers")  # 1 where a layer rotates
    if rotates is None:
        every = positive_int(config, "no_rope_layer_interval", default=4)
        rotates = [int((i + 1) % every != 0) for i in range(num_layers)]
    if not isinstance(rotates, list) or len(rotates) != num_layers:
        raise ValueError(f"config.json: no_rope_layers is no list of {num_layers} numbers, one a layer")
    layers = [
        llama_layer(config, replace(attention, window=window, rope=attention.rope if own else None))
        for window, own in zip(qwen_windows(config), rotates, strict=True)
    ]
    return DecoderSpec.of(config, tuple(layers))
