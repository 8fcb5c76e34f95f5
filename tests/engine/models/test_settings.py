"""Settings of a config.json that are wrong or not built are refused by their names."""

from __future__ import annotations

from typing import Any

import pytest

from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.models.registry import decoder_spec, has_family

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GPT2 = {"architectures": ["GPT2LMHeadModel"], "vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4}
FALCON = LLAMA | {"architectures": ["FalconForCausalLM"]}
STARCODER = LLAMA | {"architectures": ["Starcoder2ForCausalLM"]}
DEEPSEEK_V2 = LLAMA | {"architectures": ["DeepseekV2ForCausalLM"], "num_experts_per_tok": 2}
DEEPSEEK_V3 = LLAMA | {"architectures": ["DeepseekV3ForCausalLM"]}
QWEN = LLAMA | {"architectures": ["Qwen2ForCausalLM"]}
EXAONE = LLAMA | {"architectures": ["Exaone4ForCausalLM"], "num_hidden_layers": 6, "sliding_window": 32}
MPT = {"architectures": ["MptForCausalLM"], "vocab_size": 128, "d_model": 64, "n_layers": 2, "n_heads": 4}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LLAMA | {"hidden_act": "swoosh"}, "hidden_act is 'swoosh': it must be one of silu"),
        (LLAMA | {"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5': it must be a number"),
        (LLAMA | {"attention_bias": "yes"}, "attention_bias is 'yes': it must be true or false"),
        (GPT2 | {"activation_function": "swoosh"}, "activation_function is 'swoosh'"),
        (GPT2 | {"n_head": 0}, "n_head is 0: it must be a whole number above 0"),
        ({k: v for k, v in GPT2.items() if k != "n_layer"}, "config.json has no 'n_layer'"),
        (GPT2 | {"add_cross_attention": True}, "add_cross_attention is True: only False is supported"),
        (LLAMA | {"architectures": ["PhiForCausalLM"], "tie_word_embeddings": True}, "the head has a bias: only false"),
        (EXAONE | {"sliding_window_pattern": "LLXG"}, "sliding_window_pattern is 'LLXG': it must be a whole number"),
        (MPT | {"attn_config": {"qk_ln": True}}, "qk_ln is True: only False is supported"),
        (MPT | {"expansion_ratio": 2}, "expansion_ratio is 2: only 4 is supported"),
        (MPT | {"norm_type": "rmsnorm"}, "norm_type is 'rmsnorm': only 'low_precision_layernorm' is supported"),
        (STARCODER | {"norm_type": "rms_norm"}, "norm_type is 'rms_norm': only 'layer_norm' is supported"),
        (STARCODER | {"mlp_type": "gated"}, "mlp_type is 'gated': only 'default' is supported"),
        (DEEPSEEK_V2 | {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid': only 'softmax' is supported"),
        (DEEPSEEK_V2 | {"moe_layer_freq": 2}, "moe_layer_freq is 2: only 1 is supported"),
        (DEEPSEEK_V3 | {"scoring_func": "softmax"}, "scoring_func is 'softmax': only 'sigmoid' is supported"),
        (DEEPSEEK_V3 | {"topk_method": "greedy"}, "topk_method is 'greedy': only 'noaux_tc' is supported"),
        (DEEPSEEK_V3 | {"moe_layer_freq": 2}, "moe_layer_freq is 2: only 1 is supported"),
        (QWEN | {"dual_chunk_attention_config": {"chunk_size": 8}}, "has no original_max_position_embeddings"),
        (MPT | {"attn_config": "alibi"}, "attn_config is 'alibi': it must be an object"),
        (FALCON | {"num_kv_heads": 3, "new_decoder_architecture": True}, "4 attention heads do not divide into 3"),
        (
            LLAMA | {"architectures": ["Cohere2ForCausalLM"], "layer_types": ["full_attention", "linear_attention"]},
            "layer_types has 'linear_attention': full_attention and sliding_attention are supported",
        ),
        (
            LLAMA | {"architectures": ["Gemma2ForCausalLM"], "layer_types": ["full_attention"]},
            "layer_types is no list of 2 kinds",
        ),
        (
            LLAMA | {"architectures": ["Phi3ForCausalLM"], "rope_scaling": {"type": "su", "short_factor": [1.0]}},
            "the rope type longrope needs short_factor as 8 numbers",
        ),
    ],
)
def test_what_is_wrong_is_named(config: dict[str, Any], message: str) -> None:
    from quire_engine.models.decoder import CausalLM

    with pytest.raises(ValueError, match=message):
        CausalLM(decoder_spec(config))


def test_older_configs_mean_what_newer_ones_mean() -> None:
    """As they are on the hub: Gemma 3 and GPT-NeoX before rope had parameters of its own."""
    gemma = LLAMA | {"architectures": ["Gemma3ForCausalLM"], "head_dim": 16, "sliding_window": 32}
    older = gemma | {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 2,
    }
    newer = gemma | {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        "layer_types": ["sliding_attention", "full_attention"],
    }
    for a, b in zip(decoder_spec(older).layers, decoder_spec(newer).layers, strict=True):
        left, right = a.attention.rope, b.attention.rope
        assert left is not None
        assert right is not None
        assert (left.rope_type, left.theta, left.dim) == (right.rope_type, right.theta, right.dim)
    neox = LLAMA | {"architectures": ["GPTNeoXForCausalLM"], "rotary_pct": 0.5, "rotary_emb_base": 500}
    rope = decoder_spec(neox).layers[0].attention.rope
    assert rope is not None
    assert (rope.dim, rope.theta) == (8, 500.0)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (FALCON | {"num_kv_heads": 4}, {"num_kv_heads": 1, "tied_embeddings": True}),
        (FALCON | {"multi_query": False}, {"num_kv_heads": 4}),
        (FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}, {"num_kv_heads": 2}),
        (GPT2, {"intermediate_size": 256, "max_position_embeddings": 1024}),
        (
            {"architectures": ["BloomForCausalLM"], "vocab_size": 128, "n_embed": 64, "n_layer": 3, "n_head": 4},
            {"hidden_size": 64, "num_layers": 3, "intermediate_size": 256},
        ),
        (LLAMA | {"architectures": ["GemmaForCausalLM"]}, {"head_dim": 256, "tied_embeddings": True}),
    ],
)
def test_what_is_left_out_is_what_the_class_says(config: dict[str, Any], sizes: dict[str, Any]) -> None:
    shape = ModelShape.of_known_architecture(config)
    assert {name: getattr(shape, name) for name in sizes} == sizes
    assert decoder_spec(config).shape == shape


# As mosaicml/mpt-7b, and tiiuae/falcon-7b and falcon-40b in their first revisions, say it of larger models.
PUBLISHED_MPT = MPT | {
    "architectures": ["MPTForCausalLM"],
    "attn_config": {
        "alibi": True,
        "alibi_bias_max": 8,
        "attn_impl": "torch",
        "attn_pdrop": 0,
        "attn_type": "multihead_attention",
        "attn_uses_sequence_id": False,
        "clip_qkv": None,
        "prefix_lm": False,
        "qk_ln": False,
        "softmax_scale": None,
    },
    "expansion_ratio": 4,
    "learned_pos_emb": True,  # which ALiBi takes the place of
    "logit_scale": None,
    "max_seq_len": 2048,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
}
RW = {"vocab_size": 128, "hidden_size": 64, "n_layer": 2, "n_head": 4, "parallel_attn": True, "alibi": False}
RW |= {"architectures": ["RWForCausalLM"], "bias": False}
FALCON_7B = {"num_kv_heads": 1, "multi_query": True, "parallel_attn": True}
FALCON_40B = {"num_kv_heads": 2, "new_decoder_architecture": True}


@pytest.mark.parametrize(
    ("published", "usual"),
    [
        (PUBLISHED_MPT, MPT),
        (RW | {"model_type": "RefinedWebModel", "multi_query": True}, FALCON | FALCON_7B | {"intermediate_size": 256}),
        (RW | {"model_type": "RefinedWeb", "n_head_kv": 2}, FALCON | FALCON_40B | {"intermediate_size": 256}),
        (LLAMA | {"architectures": ["LLaMAForCausalLM"]}, LLAMA),
    ],
    ids=["MPT", "Falcon 7B", "Falcon 40B", "LLaMA"],
)
def test_files_from_before_transformers_had_the_class_mean_the_same(
    published: dict[str, Any], usual: dict[str, Any]
) -> None:
    assert has_family(published)
    one, other = decoder_spec(published), decoder_spec(usual)
    assert (one.shape, one.layers, one.longest) == (other.shape, other.layers, other.longest)


@pytest.mark.parametrize(("pattern", "full"), [(3, [2, 5]), ("LLG", [2, 5]), ("LLLG", [3, 5]), (None, [3])])
def test_the_pattern_of_exaone_may_be_spelled(pattern: int | str | None, full: list[int]) -> None:
    """The last layer of one that is spelled sees everything, as its authors have it."""
    layers = decoder_spec(EXAONE | {"sliding_window_pattern": pattern}).layers
    assert [i for i, layer in enumerate(layers) if layer.attention.window is None] == full


def test_a_model_that_chunks_long_prompts_ends_where_it_would_begin_to() -> None:
    """As Qwen2.5-7B-Instruct-1M: attention in chunks is not there, and up to these positions is not needed."""
    chunks = {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}
    published = QWEN | {"max_position_embeddings": 1010000, "dual_chunk_attention_config": chunks}
    assert decoder_spec(published).longest == 262144
