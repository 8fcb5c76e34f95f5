"""A family of models, and the sizes of the small ones that tests make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VOCAB_SIZE = 128
MAX_MODEL_LEN = 128
PLAIN: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_MODEL_LEN,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
SIZES: dict[str, Any] = PLAIN | {"intermediate_size": 96, "num_key_value_heads": 2}
LONG_FACTORS = {"short_factor": [1.0 + 0.02 * i for i in range(8)], "long_factor": [1.0 + 0.5 * i for i in range(8)]}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 32}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One class of models. `cases` are settings of its config class, by what they check."""

    models: str  # that people know
    architecture: str
    config: str
    cases: Mapping[str, dict[str, Any]]
