"""Decoders of which each token takes a few experts."""

from __future__ import annotations

from typing import Any

from tests.engine.models.family import PLAIN, SIZES, YARN_ROPE, Family

EXPERTS: dict[str, Any] = SIZES | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT: dict[str, Any] = PLAIN | {
    "intermediate_size": 96,
    "kv_lora_rank": 24,
    "q_lora_rank": 20,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
ROUTED: dict[str, Any] = SIZES | {
    "head_dim": 24,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}
MSCALE_ROPE = YARN_ROPE | {"mscale": 0.7, "mscale_all_dim": 1.1}

WITH_EXPERTS = [
    Family(
        models="Mixtral",
        architecture="MixtralForCausalLM",
        config="MixtralConfig",
        cases={
            "experts": SIZES | {"num_local_experts": 4},
            "three of five experts, sliding window": SIZES
            | {"num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 20},
        },
    ),
    Family(
        models="Qwen1.5-MoE, Qwen2-MoE",
        architecture="Qwen2MoeForCausalLM",
        config="Qwen2MoeConfig",
        cases={
            "shared expert with a gate": EXPERTS | {"shared_expert_intermediate_size": 48},
            "dense layers between, weights that sum to 1": EXPERTS
            | {
                "num_hidden_layers": 4,
                "decoder_sparse_step": 2,
                "mlp_only_layers": [3],
                "norm_topk_prob": True,
                "shared_expert_intermediate_size": 48,
            },
        },
    ),
    Family(
        models="Qwen3-MoE",
        architecture="Qwen3MoeForCausalLM",
        config="Qwen3MoeConfig",
        cases={
            "experts": EXPERTS | {"head_dim": 24, "norm_topk_prob": True},
            "a dense layer, tied head": EXPERTS | {"mlp_only_layers": [0], "tie_word_embeddings": True},
        },
    ),
    Family(
        models="OLMoE",
        architecture="OlmoeForCausalLM",
        config="OlmoeConfig",
        cases={"experts, norm of all heads": SIZES | {"num_experts": 6, "num_experts_per_tok": 3}},
    ),
    Family(
        models="DeepSeek-V2",
        architecture="DeepseekV2ForCausalLM",
        config="DeepseekV2Config",
        cases={
            "latent attention, experts of groups": LATENT
            | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.5},
            "whole queries, yarn rope": LATENT | {"q_lora_rank": None, "rope_parameters": MSCALE_ROPE},
        },
    ),
    Family(
        models="DeepSeek-V3, R1",
        architecture="DeepseekV3ForCausalLM",
        config="DeepseekV3Config",
        cases={
            "latent attention, corrected choice of experts": LATENT | {"n_group": 4, "topk_group": 2},
            "whole queries, yarn rope, rope by halves": LATENT
            | {
                "n_group": 2,
                "topk_group": 1,
                "q_lora_rank": None,
                "rope_parameters": MSCALE_ROPE,
                "rope_interleave": False,
            },
        },
    ),
    Family(
        models="GLM-4.5, GLM-4.6",
        architecture="Glm4MoeForCausalLM",
        config="Glm4MoeConfig",
        cases={
            "experts, part of each head rotated": ROUTED,
            "norm of each head, biases": ROUTED | {"use_qk_norm": True, "attention_bias": True},
        },
    ),
    Family(
        models="dots.llm1",
        architecture="Dots1ForCausalLM",
        config="Dots1Config",
        cases={
            "experts, window on later layers": ROUTED
            | {"n_shared_experts": 2, "sliding_window": 20, "max_window_layers": 1, "norm_topk_prob": True},
        },
    ),
    Family(
        models="Granite-MoE",
        architecture="GraniteMoeForCausalLM",
        config="GraniteMoeConfig",
        cases={
            "experts stored in three dimensions, multipliers": SIZES
            | {"num_local_experts": 5, "embedding_multiplier": 6.0, "logits_scaling": 4.0}
            | {"residual_multiplier": 0.4, "attention_multiplier": 0.1},
        },
    ),
]
