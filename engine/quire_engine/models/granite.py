"""Granite: the plain decoder with multipliers on embeddings, scores, residuals and logits; and with experts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from quire_engine.layers.routing import RouterSpec
from quire_engine.memory_plan.config_fields import positive_int
from quire_engine.models.decoder import DecoderSpec, EmbeddingSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.llama import llama_attention, llama_layer
from quire_engine.models.moe_block import MoESpec
from quire_engine.models.naming import Naming, Source
from quire_engine.models.settings import Config, activation, number


def granite(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    return _granite(config, _layer(config))


def granite_moe(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    layer, inner_size = _layer(config), positive_int(config, "intermediate_size")
    router = RouterSpec(
        num_experts=positive_int(config, "num_experts"),
        top_k=positive_int(config, "num_experts_per_tok"),
        renormalised=True,
    )
    experts = MoESpec(router=router, inner_size=inner_size, activation=activation(config, "hidden_act", "silu"))
    source = partial(_source, num_experts=router.num_experts, inner_size=inner_size)
    return replace(_granite(config, replace(layer, mlp=experts)), naming=Naming(source))


def _source(name: str, *, num_experts: int, inner_size: int) -> Source:
    """Each kind of weight is one tensor of all experts, the gates' rows above the ups'."""
    path, found, rest = name.partition(".mlp.")
    if not found:
        return Source(name)
    block, (module, *more) = f"{path}.block_sparse_moe", rest.split(".")
    if module == "gate":
        return Source(f"{block}.router.layer.weight")
    matrix = (int(more[0]), num_experts)
    if more[1] == "down_proj":
        return Source(f"{block}.output_linear.weight", matrix=matrix)
    first = 0 if more[1] == "gate_proj" else inner_size
    return Source(f"{block}.input_linear.weight", torch.arange(first, first + inner_size), matrix=matrix)


def _layer(config: Config) -> LayerSpec:
    attention = replace(llama_attention(config), scale=number(config, "attention_multiplier", 1.0))
    return replace(llama_layer(config, attention), residual_multiplier=number(config, "residual_multiplier", 1.0))


def _granite(config: Config, layer: LayerSpec) -> DecoderSpec:
    return DecoderSpec.of(
        config,
        layer,
        embedding=EmbeddingSpec(multiplier=number(config, "embedding_multiplier", 1.0)),
        logit_multiplier=1.0 / number(config, "logits_scaling", 1.0),
    )
