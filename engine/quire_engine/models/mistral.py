"""Mistral 7B and its kin: the plain decoder, where every layer may see a sliding window only."""

from __future__ import annotations

from collections.abc import Mapping

from quire_engine.memory_plan.model_shape import positive_int
from quire_engine.models.decoder import DecoderSpec


def mistral(config: Mapping[str, object]) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    config = {"sliding_window": 4096, **config}
    window = None if config["sliding_window"] is None else positive_int(config, "sliding_window")
    return DecoderSpec.from_config(config, windows=(window,) * positive_int(config, "num_hidden_layers"))
