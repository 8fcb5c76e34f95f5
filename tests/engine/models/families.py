"""The families that are served, and the small models of each that tests compare with transformers.

`docs/write_models.py` makes the table of docs/models.md of it.
"""

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
OPT = PLAIN | {"ffn_dim": 96, "word_embed_proj_dim": 64}
FALCON = PLAIN | {"ffn_hidden_size": 96}
FULL, SLIDING = "full_attention", "sliding_attention"
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONG_FACTORS = {"short_factor": [1.0 + 0.02 * i for i in range(8)], "long_factor": [1.0 + 0.5 * i for i in range(8)]}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 32}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One class of models. `cases` are settings of its config class, by what they check."""

    models: str  # that people know
    architecture: str
    config: str
    cases: Mapping[str, dict[str, Any]]


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

CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 8,
}
LLAVA: dict[str, Any] = {
    "text_config": SIZES | {"model_type": "llama"},
    "vision_config": CLIP,
    "image_token_index": 96,
    "image_seq_length": 9,
}
LONGER = SIZES | {"max_position_embeddings": 256}
LLAVA_NEXT: dict[str, Any] = LLAVA | {
    "text_config": LONGER | {"model_type": "llama"},
    "image_grid_pinpoints": [[24, 48], [48, 24], [48, 48], [72, 24], [24, 72]],
}
PHI4_MULTIMODAL: dict[str, Any] = SIZES | {
    "original_max_position_embeddings": MAX_MODEL_LEN,
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 64,
        "crop_size": 64,
        "patch_size": 2,
        "image_token_id": 96,
    },
    "audio_config": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_blocks": 1,
        "num_attention_heads": 2,
        "ext_pw_out_channel": 16,
        "depthwise_separable_out_channel": 16,
        "nemo_conv_channels": 16,
        "audio_token_id": 97,
    },
}

FAMILIES = [
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
    Family(
        models="LLaVA 1.5, BakLLaVA",
        architecture="LlavaForConditionalGeneration",
        config="LlavaConfig",
        cases={
            "images before Llama": LLAVA,
            "images before Mistral, two layers of the tower, class token": LLAVA
            | {
                "text_config": SIZES | {"model_type": "mistral", "sliding_window": 24},
                "vision_feature_layer": [-2, 1],
                "vision_feature_select_strategy": "full",
                "image_seq_length": 10,
                "multimodal_projector_bias": False,
            },
        },
    ),
    Family(
        models="LLaVA-NeXT (LLaVA 1.6)",
        architecture="LlavaNextForConditionalGeneration",
        config="LlavaNextConfig",
        cases={
            "tiles before Mistral": LLAVA_NEXT
            | {"text_config": LONGER | {"model_type": "mistral", "sliding_window": 24}},
            "tiles before Llama, two layers of the tower, other grids": LLAVA_NEXT
            | {
                "vision_feature_layer": [-2, 1],
                "multimodal_projector_bias": False,
                "image_grid_pinpoints": [[24, 24], [24, 72], [48, 48], [96, 24]],
            },
            "tiles before Qwen2": LLAVA_NEXT | {"text_config": LONGER | {"model_type": "qwen2"}},
        },
    ),
    Family(
        models="Phi-4-multimodal (images)",
        architecture="Phi4MultimodalForCausalLM",
        config="Phi4MultimodalConfig",
        cases={
            "images": PHI4_MULTIMODAL,
            "longrope of a part of each head, tied head": PHI4_MULTIMODAL
            | {
                "max_position_embeddings": MAX_MODEL_LEN,
                "original_max_position_embeddings": 32,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "partial_rotary_factor": 0.75,
                    "short_factor": LONG_FACTORS["short_factor"][:6],
                    "long_factor": LONG_FACTORS["long_factor"][:6],
                },
                "tie_word_embeddings": True,
            },
        },
    ),
]

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
"""They make embeddings. Those without `models` are the same models, saved with the head that they were trained with."""

CASES: dict[str, tuple[Family, dict[str, Any]]] = {
    f"{family.architecture}: {name}": (family, settings)
    for family in FAMILIES
    for name, settings in family.cases.items()
}
ENCODER_CASES: dict[str, tuple[Family, dict[str, Any]]] = {
    f"{family.architecture}: {name}": (family, settings)
    for family in ENCODERS
    for name, settings in family.cases.items()
}
