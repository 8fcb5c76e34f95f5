"""Decoders of which each token takes a few experts."""

from __future__ import annotations

from quire_engine.memory_plan.config_fields import Config, positive_int
from quire_engine.memory_plan.families.architecture import Architecture
from quire_engine.memory_plan.families.dense import QWEN


def _qwen_moe(config: Config) -> Config:
    """transformers writes the number of experts under another name than Qwen's authors do."""
    return {"num_experts": config.get("num_experts") or config.get("num_local_experts")}


def _deepseek(config: Config) -> Config:
    """The cache holds one latent vector for all heads, with one rotated key (DeepSeek-V2, section 2.1)."""
    width = positive_int(config, "kv_lora_rank") + positive_int(config, "qk_rope_head_dim")
    return {"num_key_value_heads": 1, "head_dim": width, "kv_width": width}


_ROUTED = {"num_experts": "n_routed_experts"}
_ROUTER = (".mlp.gate.weight", ".mlp.gate.e_score_correction_bias")
_V3: Config = {
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 4096,
}
_GLM_MOE: Config = {
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "moe_intermediate_size": 1408,
    "max_position_embeddings": 131072,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-5,
}
_EXPERTS = {"num_experts": "num_local_experts"}
_LATENT: Config = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}

WITH_EXPERTS: dict[str, Architecture] = {
    "MixtralForCausalLM": Architecture(
        names=_EXPERTS,
        defaults={
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 131072,
            "rope_theta": 1e6,
            "rms_norm_eps": 1e-5,
        },
    ),
    "Qwen2MoeForCausalLM": Architecture(derived=_qwen_moe, defaults=QWEN),
    "Qwen3MoeForCausalLM": Architecture(derived=_qwen_moe, defaults=QWEN),
    "OlmoeForCausalLM": Architecture(
        derived=_qwen_moe, defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    ),
    "DeepseekV2ForCausalLM": Architecture(
        names=_ROUTED, defaults={**_LATENT, "num_experts": 64}, derived=_deepseek, float32=_ROUTER
    ),
    "DeepseekV3ForCausalLM": Architecture(
        names=_ROUTED, defaults={**_LATENT, **_V3}, derived=_deepseek, float32=_ROUTER
    ),
    "Glm4MoeForCausalLM": Architecture(names=_ROUTED, defaults=_GLM_MOE, float32=_ROUTER),
    "GraniteMoeForCausalLM": Architecture(names=_EXPERTS, defaults={"num_experts": 8, "num_experts_per_tok": 2}),
    "Dots1ForCausalLM": Architecture(
        names=_ROUTED, defaults={"sliding_window": 4096, "max_window_layers": 62}, float32=_ROUTER
    ),
}
