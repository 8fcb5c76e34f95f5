"""Phi-3, Phi-3.5 and Phi-4: the plain decoder, with its projections stored as one."""

from __future__ import annotations

from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.llama import llama_layer, rope_of
from quire_engine.models.naming import renamed, stacked, stacked_heads
from quire_engine.models.settings import Config, optional_window


def phi3(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    shape = ModelShape.from_config(config)
    inner = shape.intermediate_size
    mlp = stacked("mlp.gate_up_proj", gate_proj=inner, up_proj=inner)
    fused = stacked_heads("self_attn.qkv_proj", shape) | {f"mlp.{name}": rows for name, rows in mlp.items()}
    layer = llama_layer(
        {"rms_norm_eps": 1e-5, **config}, AttentionSpec(rope=rope_of(config), window=optional_window(config))
    )
    return DecoderSpec.of(config, layer, naming=renamed({}, fused=fused))
