"""EXAONE 4: norms behind each part and of each head; layers that see everything know no positions."""

from __future__ import annotations

from dataclasses import replace

from quire_engine.layers.norm import HeadNormSpec
from quire_engine.memory_plan.config_fields import positive_int
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.llama import llama_layer, rms_norm, rope_of
from quire_engine.models.settings import Config, layer_kinds, optional_window


def exaone4(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    config = {"rms_norm_eps": 1e-5, **config}
    window = optional_window(config)
    attention = AttentionSpec(rope=rope_of(config), window=window, qk_norm=HeadNormSpec("head", rms_norm(config)))
    kinds = {
        "sliding_attention": attention,
        "full_attention": replace(attention, window=None, rope=attention.rope if window is None else None),
    }
    return DecoderSpec.of(
        config,
        tuple(
            replace(llama_layer(config, kinds[kind]), arrangement="output")
            for kind in _kinds(config, slides=window is not None)
        ),
    )


def _kinds(config: Config, *, slides: bool) -> tuple[str, ...]:
    """As `layer_kinds`, where the pattern may also be spelled: LLLG are three local layers and a global one."""
    if config.get("layer_types") is not None or not slides:
        return layer_kinds(config)
    pattern = config.get("sliding_window_pattern")
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        last = positive_int(config, "num_hidden_layers") - 1  # sees everything, whatever its letter
        local = [i != last and pattern[i % len(pattern)] == "L" for i in range(last + 1)]
        return tuple("sliding_attention" if each else "full_attention" for each in local)
    return layer_kinds(config, every=positive_int(config, "sliding_window_pattern", default=4))
