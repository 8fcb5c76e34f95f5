"""Decoders built as Llama is: gated MLP, rotated positions, mostly RMSNorm."""

from __future__ import annotations

from tests.engine.models.family import LONG_FACTORS, SIZES, YARN_ROPE, Family

FULL = "full_attention"
SLIDING = "sliding_attention"
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

LIKE_LLAMA = [
    Family(
        models="Llama 1 to 3, Yi, DeepSeek (dense)",
        architecture="LlamaForCausalLM",
        config="LlamaConfig",
        cases={
            "grouped heads": SIZES,
            "tied head, biases, llama3 rope": SIZES
            | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3_ROPE},
            "linear rope, gelu": SIZES
            | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, "hidden_act": "gelu"},
            "yarn rope": SIZES | {"rope_parameters": YARN_ROPE},
            "dynamic rope": SIZES
            | {
                "max_position_embeddings": 48,
                "rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 100.0},
            },
        },
    ),
    Family(
        models="Mistral",
        architecture="MistralForCausalLM",
        config="MistralConfig",
        cases={
            "sliding window": SIZES | {"sliding_window": 20},
            "no window, wide heads": SIZES | {"sliding_window": None, "head_dim": 24},
        },
    ),
    Family(
        models="Qwen2, Qwen2.5",
        architecture="Qwen2ForCausalLM",
        config="Qwen2Config",
        cases={
            "biases": SIZES,
            "window on later layers": SIZES
            | {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
        },
    ),
    Family(
        models="Qwen3",
        architecture="Qwen3ForCausalLM",
        config="Qwen3Config",
        cases={
            "norm of each head": SIZES | {"head_dim": 24},
            "tied head": SIZES | {"head_dim": 24, "tie_word_embeddings": True},
        },
    ),
    Family(
        models="Gemma, CodeGemma",
        architecture="GemmaForCausalLM",
        config="GemmaConfig",
        cases={"scaled embedding": SIZES | {"head_dim": 24}},
    ),
    Family(
        models="Gemma 2",
        architecture="Gemma2ForCausalLM",
        config="Gemma2Config",
        cases={
            "alternating window, soft-capped scores and logits": SIZES
            | {"head_dim": 24, "sliding_window": 20, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 5.0},
        },
    ),
    Family(
        models="Gemma 3 (text)",
        architecture="Gemma3ForCausalLM",
        config="Gemma3TextConfig",
        cases={
            "two rope bases, alternating window": SIZES
            | {"head_dim": 24, "sliding_window": 20, "query_pre_attn_scalar": 20, "layer_types": [SLIDING, FULL]},
            "scaled rope where all is seen": SIZES
            | {
                "head_dim": 24,
                "sliding_window": 20,
                "layer_types": [FULL, SLIDING],
                "rope_parameters": {
                    FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
                },
            },
        },
    ),
    Family(
        models="Phi-3, Phi-3.5, Phi-4",
        architecture="Phi3ForCausalLM",
        config="Phi3Config",
        cases={
            "fused projections": SIZES,
            "longrope": SIZES
            | {
                "original_max_position_embeddings": 48,
                "rope_parameters": {"rope_type": "longrope", "rope_theta": 100.0} | LONG_FACTORS,
            },
            "part of each head rotated, sliding window": SIZES
            | {"sliding_window": 20, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        },
    ),
    Family(
        models="StableLM",
        architecture="StableLmForCausalLM",
        config="StableLmConfig",
        cases={
            "quarter of each head rotated": SIZES,
            "norms for each head, parallel block, biases": SIZES
            | {"qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": True},
        },
    ),
    Family(
        models="Command-R",
        architecture="CohereForCausalLM",
        config="CohereConfig",
        cases={
            "neighbours rotated, scaled logits": SIZES,
            "norms for each head": SIZES | {"use_qk_norm": True, "attention_bias": True},
        },
    ),
    Family(
        models="Command-R7B, Command-A",
        architecture="Cohere2ForCausalLM",
        config="Cohere2Config",
        cases={"layers without positions": SIZES | {"sliding_window": 20, "layer_types": [SLIDING, FULL]}},
    ),
    Family(
        models="OLMo",
        architecture="OlmoForCausalLM",
        config="OlmoConfig",
        cases={"norms without parameters, clipped projections": SIZES | {"clip_qkv": 1.0}},
    ),
    Family(
        models="OLMo-2",
        architecture="Olmo2ForCausalLM",
        config="Olmo2Config",
        cases={"norms behind each part, norm over all heads": SIZES},
    ),
    Family(
        models="Granite 3",
        architecture="GraniteForCausalLM",
        config="GraniteConfig",
        cases={
            "multipliers": SIZES
            | {"embedding_multiplier": 6.0, "logits_scaling": 4.0, "residual_multiplier": 0.4}
            | {"attention_multiplier": 0.1},
        },
    ),
    Family(
        models="Ministral",
        architecture="MinistralForCausalLM",
        config="MinistralConfig",
        cases={"alternating window": SIZES | {"head_dim": 24, "sliding_window": 20, "layer_types": [SLIDING, FULL]}},
    ),
    Family(
        models="OLMo-3",
        architecture="Olmo3ForCausalLM",
        config="Olmo3Config",
        cases={"alternating window": SIZES | {"sliding_window": 20, "layer_types": [SLIDING, FULL]}},
    ),
    Family(
        models="Nemotron, Minitron",
        architecture="NemotronForCausalLM",
        config="NemotronConfig",
        cases={"half of each head rotated": SIZES | {"head_dim": 24}},
    ),
    Family(
        models="GLM-4",
        architecture="GlmForCausalLM",
        config="GlmConfig",
        cases={"neighbours rotated in half of each head": SIZES | {"head_dim": 24}},
    ),
    Family(
        models="GLM-4-0414",
        architecture="Glm4ForCausalLM",
        config="Glm4Config",
        cases={"norms around each part": SIZES | {"head_dim": 16, "attention_bias": False}},
    ),
    Family(
        models="SmolLM3",
        architecture="SmolLM3ForCausalLM",
        config="SmolLM3Config",
        cases={"layers without positions": SIZES | {"no_rope_layers": [1, 0]}},
    ),
    Family(
        models="EXAONE 4",
        architecture="Exaone4ForCausalLM",
        config="Exaone4Config",
        cases={
            "layers without positions": SIZES | {"sliding_window": 20, "layer_types": [SLIDING, FULL]},
            "no window": SIZES | {"sliding_window": None, "layer_types": [FULL, FULL]},
        },
    ),
    Family(
        models="ERNIE 4.5",
        architecture="Ernie4_5ForCausalLM",
        config="Ernie4_5Config",
        cases={"neighbours rotated, biases": SIZES | {"head_dim": 16, "use_bias": True}},
    ),
    Family(
        models="AFM (Arcee)",
        architecture="ArceeForCausalLM",
        config="ArceeConfig",
        cases={"plain MLP": SIZES},
    ),
    Family(
        models="Seed-OSS",
        architecture="SeedOssForCausalLM",
        config="SeedOssConfig",
        cases={"biases on q, k and v": SIZES | {"head_dim": 24}},
    ),
]
