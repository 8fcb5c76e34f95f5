"""BERT, RoBERTa, XLM-RoBERTa and DistilBERT: encoders, whose tokens see the whole prompt (Devlin et al., 2018)."""

from __future__ import annotations

from dataclasses import replace

from quire_engine.layers.norm import NormSpec
from quire_engine.memory_plan.architectures import unused_tensors
from quire_engine.memory_plan.config_fields import positive_int
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.memory_plan.weight_sizes import COMPUTED
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec, EmbeddingSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.naming import Naming, renamed
from quire_engine.models.settings import Config, activation, number, refuse

_EMBEDDINGS = {
    "model.embed_tokens": "embeddings.word_embeddings",
    "model.embed.positions": "embeddings.position_embeddings",
    "model.embed.token_types": "embeddings.token_type_embeddings",
    "model.embed.norm": "embeddings.LayerNorm",
}
# In files of before 2019, google-bert/bert-base-uncased among them.
_OLD_ENDINGS = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}
_LAYER = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.o_proj": "attention.output.dense",
    "input_layernorm": "attention.output.LayerNorm",
    "mlp.up_proj": "intermediate.dense",
    "mlp.down_proj": "output.dense",
    "post_attention_layernorm": "output.LayerNorm",
}
_DISTILBERT_LAYER = {
    "self_attn.q_proj": "attention.q_lin",
    "self_attn.k_proj": "attention.k_lin",
    "self_attn.v_proj": "attention.v_lin",
    "self_attn.o_proj": "attention.out_lin",
    "input_layernorm": "sa_layer_norm",
    "mlp.up_proj": "ffn.lin1",
    "mlp.down_proj": "ffn.lin2",
    "post_attention_layernorm": "output_layer_norm",
}


def bert(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    return _bert(config, "bert.", first_position=0)


def roberta(config: Config) -> DecoderSpec:
    """Positions begin behind the padding's id. Raises `ValueError` that names what is not supported."""
    padding = config.get("pad_token_id")
    return _bert(config, "roberta.", first_position=1 + (padding if isinstance(padding, int) else 1))


def distilbert(config: Config) -> DecoderSpec:
    """No token types. Raises `ValueError` that names what is not supported."""
    naming = _naming(config, "distilbert.", "transformer.layer.", _DISTILBERT_LAYER)
    return _encoder(config, activation(config, "activation", "gelu"), 1e-12, EmbeddingSpec(), naming)


def _bert(config: Config, prefix: str, first_position: int) -> DecoderSpec:
    refuse(config, "position_embedding_type", "absolute")
    refuse(config, "is_decoder", False)
    refuse(config, "add_cross_attention", False)
    naming = _naming(config, prefix, "encoder.layer.", _LAYER)
    embedding = EmbeddingSpec(first_position=first_position, token_types=positive_int(config, "type_vocab_size"))
    eps = number(config, "layer_norm_eps", 1e-12)
    return _encoder(config, activation(config, "hidden_act", "gelu"), eps, embedding, naming)


def _encoder(config: Config, act: str, eps: float, embedding: EmbeddingSpec, naming: Naming) -> DecoderSpec:
    norm = NormSpec("layer", eps)
    layer = LayerSpec(
        attention=AttentionSpec(causal=False, qkv_bias=True, output_bias=True),
        mlp=MLPSpec(activation=act, gated=False, bias=True),
        norm=norm,
        arrangement="post",
    )
    positions = ModelShape.from_config(config).max_position_embeddings
    embedding = replace(embedding, learned_positions=positions, norm=norm)
    return replace(DecoderSpec.of(config, layer, embedding=embedding, naming=naming), norm=None)


def _naming(config: Config, prefix: str, layers: str, own: dict[str, str]) -> Naming:
    """Names of a model with a head, whose other tensors begin with `prefix`, or of one without."""
    modules = {ours: prefix + theirs for ours, theirs in _EMBEDDINGS.items()} | own
    naming = renamed(modules, layers=prefix + layers, otherwise={prefix: ""})
    architectures = config.get("architectures")
    assert isinstance(architectures, list)
    return replace(
        naming, unused=COMPUTED, unused_prefixes=unused_tensors(architectures[0]), other_endings=_OLD_ENDINGS
    )
