"""Encoders, which see a prompt in both directions: they make embeddings alone."""

from __future__ import annotations

from quire_engine.memory_plan.config_fields import Config, positive_int
from quire_engine.memory_plan.families.architecture import Architecture


def _encoder(config: Config) -> Config:
    """An encoder keeps nothing of a token."""
    return {"kv_width": 0, "num_key_value_heads": config.get("num_attention_heads")}


def _roberta(config: Config) -> Config:
    """Positions count from the padding's id on, which stands before the first."""
    last, padding = positive_int(config, "max_position_embeddings"), config.get("pad_token_id")
    return {**_encoder(config), "max_position_embeddings": last - (padding if isinstance(padding, int) else 1) - 1}


_BERT = Architecture(
    defaults={"max_position_embeddings": 512, "type_vocab_size": 2},
    derived=_encoder,
    unused=("pooler.", "bert.pooler.", "cls."),
)
_ROBERTA = Architecture(
    defaults={"max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 1},
    derived=_roberta,
    unused=("pooler.", "roberta.pooler.", "lm_head."),
)
_DISTILBERT = Architecture(
    names={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
    },
    defaults={"max_position_embeddings": 512},
    derived=_encoder,
    unused=("vocab_transform.", "vocab_layer_norm.", "vocab_projector."),
)

ENCODERS: dict[str, Architecture] = {
    "BertModel": _BERT,
    "BertForMaskedLM": _BERT,
    "RobertaModel": _ROBERTA,
    "RobertaForMaskedLM": _ROBERTA,
    "XLMRobertaModel": _ROBERTA,
    "XLMRobertaForMaskedLM": _ROBERTA,
    "DistilBertModel": _DISTILBERT,
    "DistilBertForMaskedLM": _DISTILBERT,
}
