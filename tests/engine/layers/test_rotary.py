"""Stretched rotary frequencies are those of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from quire_engine.layers.rotary import (
    LONGEST_TABLE,
    RopeSettings,
    RotaryEmbedding,
    rope_frequencies,
    rotary_embedding,
    rotate,
)
from quire_engine.memory_plan.context_length import longest_context

HEAD_DIM = 64
CASES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_frequencies_equal_those_of_transformers(case: str) -> None:
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=131072, rope_parameters=CASES[case]
    )
    expected, expected_factor = ROPE_INIT_FUNCTIONS[case](config, torch.device("cpu"))
    settings = RopeSettings.from_config({"rope_parameters": CASES[case]}, HEAD_DIM, 131072)
    frequencies, factor = rope_frequencies(settings)
    torch.testing.assert_close(frequencies, expected, rtol=1e-6, atol=0)
    assert factor == pytest.approx(expected_factor)


def test_older_configs_mean_the_same() -> None:
    new = RopeSettings.from_config({"rope_parameters": CASES["llama3"]}, HEAD_DIM, 131072)
    scaling = {k: v for k, v in CASES["llama3"].items() if k != "rope_theta"}
    old = RopeSettings.from_config({"rope_theta": 500000.0, "rope_scaling": scaling}, HEAD_DIM, 131072)
    assert torch.equal(rope_frequencies(new)[0], rope_frequencies(old)[0])
    oldest = RopeSettings.from_config({"rope_scaling": {"type": "linear", "factor": 4.0}}, HEAD_DIM, 4096)
    assert (oldest.rope_type, oldest.theta) == ("linear", 10000.0)
    assert longest_context({"rope_scaling": {"type": "linear", "factor": 4.0}}, 4096) == 16384


def test_the_positions_of_gemma_3_are_stretched_already() -> None:
    """As medgemma-27b-text-it says: 131072 are 8 times those of the first part of its training."""
    published = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
    assert longest_context({"architectures": ["Gemma3ForCausalLM"], **published}, 131072) == 131072


def test_rotation_equals_that_of_transformers() -> None:
    positions = torch.tensor([0, 1, 17, 4000])
    x = torch.randn(4, 2, HEAD_DIM)
    cos, sin = RotaryEmbedding(RopeSettings.from_config({}, HEAD_DIM, 4096))(positions, torch.float32)
    both = torch.cat((cos, cos), -1).transpose(0, 1)[None], torch.cat((sin, sin), -1).transpose(0, 1)[None]
    expected, _ = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], both[0][:, 0], both[1][:, 0])
    torch.testing.assert_close(rotate(x, cos, sin), expected[0].transpose(0, 1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rope_parameters": {"rope_type": "spiral"}}, "'spiral' is not supported"),
        ({"partial_rotary_factor": 0.3}, "of 64 features it rotates 19, and that must be an even number"),
        ({"rope_theta": "10000"}, "rope_theta is '10000': it must be a number"),
        ({"rope_parameters": {"rope_type": "linear"}}, "linear needs factor as a number"),
    ],
)
def test_what_is_not_supported_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rope_frequencies(RopeSettings.from_config(config, HEAD_DIM, 4096))


@pytest.mark.parametrize("kind", ["default", "llama3", "yarn"])
def test_a_table_has_the_angles_of_each_position(kind: str) -> None:
    more = {"llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}}
    parameters = {"factor": 4.0, **more.get(kind, {})}
    rotary = rotary_embedding(RopeSettings(kind, 10000.0, 32, parameters, 4096))
    positions = torch.tensor([0, 1, 77, 1023, 1024, 1500, 2999])
    for length in (8, 3000):  # the second asks for more than there is
        table = rotary.table(length, torch.bfloat16)
        assert table is not None
        known = positions[positions < length]
        for one, other in zip(table, rotary(known, torch.bfloat16), strict=True):
            assert torch.equal(one[known], other)


def test_there_is_no_table_of_angles_that_depend_on_more_or_of_too_many_positions() -> None:
    plain = rotary_embedding(RopeSettings("default", 10000.0, 32, {}, 4096))
    assert plain.table(LONGEST_TABLE, torch.bfloat16) is not None
    assert plain.table(LONGEST_TABLE + 1, torch.bfloat16) is None
    assert rotary_embedding(RopeSettings("dynamic", 10000.0, 32, {"factor": 2.0}, 64)).table(8, torch.bfloat16) is None
