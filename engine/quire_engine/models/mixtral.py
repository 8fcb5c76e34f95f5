"""Mixtral: Mistral with experts in every layer."""

from __future__ import annotations

from dataclasses import replace

from quire_engine.layers.routing import RouterSpec
from quire_engine.memory_plan.config_fields import positive_int
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.llama import llama_layer, rope_of
from quire_engine.models.moe_block import MoESpec
from quire_engine.models.naming import Naming, Source
from quire_engine.models.settings import Config, activation

_NAMES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def mixtral(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    window = None if config.get("sliding_window") is None else positive_int(config, "sliding_window")
    experts = MoESpec(
        router=RouterSpec(
            num_experts=positive_int(config, "num_experts"),
            top_k=positive_int(config, "num_experts_per_tok"),
            renormalised=True,
        ),
        inner_size=positive_int(config, "intermediate_size"),
        activation=activation(config, "hidden_act", "silu"),
    )
    layer = replace(llama_layer(config, AttentionSpec(rope=rope_of(config), window=window)), mlp=experts)
    return DecoderSpec.of(config, layer, naming=Naming(_source))


def _source(name: str) -> Source:
    path, found, rest = name.partition(".mlp.")
    if not found:
        return Source(name)
    return Source(f"{path}.block_sparse_moe.{'.'.join(_NAMES.get(part, part) for part in rest.split('.'))}")
