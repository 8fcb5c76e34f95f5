"""What a config.json leaves out is what transformers' own config class takes for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import transformers

from quire_engine.layers.rotary import RopeSettings
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.registry import decoder_spec
from tests.engine.models.families import ENCODERS, FAMILIES, Family

# Sizes are always written. Of what else the small models set nothing is kept.
_NO_SIZES = {
    *("max_position_embeddings", "n_positions", "max_seq_len", "sliding_window", "max_window_layers"),
    *("head_dim", "query_pre_attn_scalar", "first_k_dense_replace", "type_vocab_size"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}
# A model that sees images says its sizes in parts.
PLAIN = [family for family in (*FAMILIES, *ENCODERS) if "vision_config" not in next(iter(family.cases.values()))]
WINDOWS = [family for family in PLAIN if hasattr(getattr(transformers, family.config), "use_sliding_window")]


def sizes_of(family: Family) -> dict[str, Any]:
    first = next(iter(family.cases.values()))
    sizes = {k: v for k, v in first.items() if type(v) is int and k not in _NO_SIZES}
    return {"architectures": [family.architecture], **sizes}


def written(family: Family, config: dict[str, Any]) -> dict[str, Any]:
    """`config` with everything that the config class adds."""
    own = {k: v for k, v in config.items() if k != "architectures"}
    return getattr(transformers, family.config)(**own).to_dict() | {"architectures": config["architectures"]}


def meaning(spec: DecoderSpec) -> Any:
    """All of `spec` but what its ropes do not need, and names."""

    def rope(settings: RopeSettings | None) -> RopeSettings | None:
        return None if settings is None else replace(settings, parameters={})

    own: list[Any] = list(spec.layers)
    layers = [(replace(each, attention=replace(each.attention, rope=None)), rope(each.attention.rope)) for each in own]
    return replace(spec, layers=(), naming=replace(spec.naming, source=repr)), layers


@pytest.mark.parametrize("family", PLAIN, ids=lambda family: family.architecture)
def test_what_is_left_out_means_what_transformers_takes_it_for(family: Family) -> None:
    config = sizes_of(family)
    assert meaning(decoder_spec(config)) == meaning(decoder_spec(written(family, config)))


@pytest.mark.parametrize("family", WINDOWS, ids=lambda family: family.architecture)
def test_layers_slide_where_those_of_transformers_do(family: Family) -> None:
    config = sizes_of(family) | {"num_hidden_layers": 30, "use_sliding_window": True}
    assert meaning(decoder_spec(config)) == meaning(decoder_spec(written(family, config)))
