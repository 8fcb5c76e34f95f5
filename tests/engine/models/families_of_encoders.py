"""Encoders, which make embeddings. Those without `models` are saved with the head that they were trained with."""

from __future__ import annotations

from typing import Any

from tests.engine.models.family import MAX_MODEL_LEN, PLAIN, VOCAB_SIZE, Family

BERT: dict[str, Any] = PLAIN | {"intermediate_size": 96, "pad_token_id": 0}
ROBERTA: dict[str, Any] = PLAIN | {"intermediate_size": 96, "pad_token_id": 1, "type_vocab_size": 1}
DISTILBERT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 96,
    "max_position_embeddings": MAX_MODEL_LEN,
}

ENCODERS = [
    Family(
        models="BERT, BGE, E5, GTE, MiniLM",
        architecture="BertModel",
        config="BertConfig",
        cases={"learned positions, token types": BERT, "tanh gelu": BERT | {"hidden_act": "gelu_new"}},
    ),
    Family(models="", architecture="BertForMaskedLM", config="BertConfig", cases={"a head that is left out": BERT}),
    Family(
        models="RoBERTa", architecture="RobertaModel", config="RobertaConfig", cases={"positions from 2 on": ROBERTA}
    ),
    Family(
        models="",
        architecture="RobertaForMaskedLM",
        config="RobertaConfig",
        cases={"a head that is left out": ROBERTA},
    ),
    Family(
        models="XLM-RoBERTa, BGE-M3 (dense), multilingual E5",
        architecture="XLMRobertaModel",
        config="XLMRobertaConfig",
        cases={"positions from 2 on": ROBERTA},
    ),
    Family(
        models="",
        architecture="XLMRobertaForMaskedLM",
        config="XLMRobertaConfig",
        cases={"a head that is left out": ROBERTA},
    ),
    Family(
        models="DistilBERT",
        architecture="DistilBertModel",
        config="DistilBertConfig",
        cases={"learned positions": DISTILBERT},
    ),
    Family(
        models="",
        architecture="DistilBertForMaskedLM",
        config="DistilBertConfig",
        cases={"a head that is left out": DISTILBERT},
    ),
]
