"""Granite: the plain decoder with multipliers on embeddings, scores, residuals and logits."""

from __future__ import annotations

from dataclasses import replace

from quire_engine.models.decoder import DecoderSpec, EmbeddingSpec
from quire_engine.models.llama import llama_attention, llama_layer
from quire_engine.models.settings import Config, number


def granite(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    attention = replace(llama_attention(config), scale=number(config, "attention_multiplier", 1.0))
    return DecoderSpec.of(
        config,
        replace(llama_layer(config, attention), residual_multiplier=number(config, "residual_multiplier", 1.0)),
        embedding=EmbeddingSpec(multiplier=number(config, "embedding_multiplier", 1.0)),
        logit_multiplier=1.0 / number(config, "logits_scaling", 1.0),
    )
