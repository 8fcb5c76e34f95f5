"""Decoders built as GPT-2 and its followers are: plain MLP, LayerNorm, positions of any kind."""

from __future__ import annotations

from tests.engine.models.family import PLAIN, SIZES, Family

OPT = PLAIN | {"ffn_dim": 96, "word_embed_proj_dim": 64}
FALCON = PLAIN | {"ffn_hidden_size": 96}

LIKE_GPT = [
    Family(
        models="GPT-NeoX, Pythia, Dolly",
        architecture="GPTNeoXForCausalLM",
        config="GPTNeoXConfig",
        cases={
            "parallel block": PLAIN | {"intermediate_size": 96},
            "sequential block, tied head": PLAIN
            | {"intermediate_size": 96, "use_parallel_residual": False, "tie_word_embeddings": True},
        },
    ),
    Family(
        models="GPT-2",
        architecture="GPT2LMHeadModel",
        config="GPT2Config",
        cases={
            "learned positions": PLAIN,
            "scaled by layer, untied head": PLAIN
            | {"n_inner": 80, "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False},
        },
    ),
    Family(
        models="Phi-1, Phi-1.5, Phi-2",
        architecture="PhiForCausalLM",
        config="PhiConfig",
        cases={
            "parallel block, half of each head rotated, biased head": SIZES,
            "norm of each head": SIZES | {"qk_layernorm": True},
        },
    ),
    Family(
        models="OPT",
        architecture="OPTForCausalLM",
        config="OPTConfig",
        cases={
            "learned positions": OPT,
            "norms after each part, projected embedding": OPT
            | {"do_layer_norm_before": False, "word_embed_proj_dim": 32, "activation_function": "gelu"},
            "no biases, norms without parameters": OPT | {"enable_bias": False, "layer_norm_elementwise_affine": False},
        },
    ),
    Family(
        models="Falcon",
        architecture="FalconForCausalLM",
        config="FalconConfig",
        cases={
            "one key for all heads": FALCON,
            "groups of heads, two norms": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
            "groups of heads, one norm": FALCON
            | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
            "ALiBi, sequential block, biases": FALCON
            | {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True, "num_attention_heads": 6}
            | {"hidden_size": 96},
        },
    ),
    Family(
        models="StarCoder2",
        architecture="Starcoder2ForCausalLM",
        config="Starcoder2Config",
        cases={"biases, sliding window": SIZES | {"sliding_window": 20}},
    ),
    Family(
        models="StarCoder, SantaCoder",
        architecture="GPTBigCodeForCausalLM",
        config="GPTBigCodeConfig",
        cases={"one key for all heads": PLAIN, "a key for each head": PLAIN | {"multi_query": False, "n_inner": 80}},
    ),
    Family(
        models="GPT-J",
        architecture="GPTJForCausalLM",
        config="GPTJConfig",
        cases={"parallel block, first neighbours rotated, biased head": PLAIN | {"rotary_dim": 8}},
    ),
    Family(
        models="BLOOM",
        architecture="BloomForCausalLM",
        config="BloomConfig",
        cases={
            "ALiBi, norm behind the embedding": PLAIN | {"num_attention_heads": 6, "hidden_size": 96, "seq_length": 128}
        },
    ),
    Family(
        models="MPT",
        architecture="MptForCausalLM",
        config="MptConfig",
        cases={
            "ALiBi": PLAIN | {"max_seq_len": 128},
            "six heads, clipped projections": PLAIN
            | {"num_attention_heads": 6, "hidden_size": 96, "max_seq_len": 128, "attn_config": {"clip_qkv": 1.0}},
        },
    ),
]
