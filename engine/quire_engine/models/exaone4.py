"""EXAONE 4: norms behind each part and of each head; layers that see everything know no positions."""

from __future__ import annotations

from dataclasses import replace

from quire_engine.layers.norm import HeadNormSpec
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.llama import llama_layer, rms_norm, rope_of
from quire_engine.models.settings import Config, layer_kinds, optional_window


def exaone4(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    config = {"rms_norm_eps": 1e-5, **config}
    window, every = optional_window(config), config.get("sliding_window_pattern", 4)
    attention = AttentionSpec(rope=rope_of(config), window=window, qk_norm=HeadNormSpec("head", rms_norm(config)))
    kinds = {
        "sliding_attention": attention,
        "full_attention": replace(attention, window=None, rope=attention.rope if window is None else None),
    }
    alternating = every if isinstance(every, int) and every > 0 and window is not None else None
    return DecoderSpec.of(
        config,
        tuple(
            replace(llama_layer(config, kinds[kind]), arrangement="output")
            for kind in layer_kinds(config, every=alternating)
        ),
    )
