"""Decoders of which each token takes all."""

from __future__ import annotations

from dataclasses import replace

from quire_engine.memory_plan.config_fields import Config
from quire_engine.memory_plan.families.architecture import Architecture


def _four_times(config: Config) -> Config:
    """An inner size that is four times the hidden one, where it is not given."""
    hidden = config.get("hidden_size")
    inner = config.get("intermediate_size")
    return {"intermediate_size": 4 * hidden} if inner is None and isinstance(hidden, int) else {}


def _falcon(config: Config) -> Config:
    """Falcon-7B shares one key and value among all heads, whatever `num_kv_heads` says; Falcon-40B groups heads."""
    # The first files, of RWForCausalLM, have other names for sizes, and tell 40B by its type.
    new = config.get("new_decoder_architecture", config.get("model_type") == "RefinedWeb")
    sizes = {
        "num_hidden_layers": config.get("num_hidden_layers") or config.get("n_layer"),
        "num_attention_heads": config.get("num_attention_heads") or config.get("n_head"),
    }
    heads = config.get("num_kv_heads") or config.get("n_head_kv") or sizes["num_attention_heads"]
    if not new and config.get("multi_query", True):
        heads = 1
    bent = {"writes_scores": bool(config.get("alibi", False))}
    return {**sizes, "new_decoder_architecture": new, "num_key_value_heads": heads, **bent, **_four_times(config)}


def _bloom(config: Config) -> Config:
    """The first files say `n_embed`, and `seq_length` for the positions that the model was trained with."""
    hidden, length = config.get("hidden_size") or config.get("n_embed"), config.get("seq_length") or 2048
    sizes = {"hidden_size": hidden, "max_position_embeddings": length}
    return {**sizes, "writes_scores": True, **_four_times({**config, **sizes})}


def _mpt(config: Config) -> Config:
    return {"writes_scores": True, **_four_times(config)}


def _gemma(config: Config) -> Config:
    """Scores are soft-capped where the cap is given: in Gemma 2 it is, unless config.json says null."""
    return {"writes_scores": config.get("attn_logit_softcapping") is not None}


def _bigcode(config: Config) -> Config:
    shared = {"num_key_value_heads": 1 if config.get("multi_query", True) else config.get("num_attention_heads")}
    return {**shared, **_four_times(config)}


_GPT2 = Architecture(
    names={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
    },
    defaults={"max_position_embeddings": 1024, "tie_word_embeddings": True},
    derived=_four_times,
)
_MISTRAL = {"sliding_window": 4096, "max_position_embeddings": 131072}
QWEN = {"sliding_window": 4096, "max_window_layers": 28, "max_position_embeddings": 32768}
_GLM = {"head_dim": 128, "num_key_value_heads": 2, "max_position_embeddings": 131072}
_COHERE = {"max_position_embeddings": 8192, "tie_word_embeddings": True}
_GEMMA = {"head_dim": 256, "max_position_embeddings": 8192, "tie_word_embeddings": True}
_GEMMA2 = {**_GEMMA, "query_pre_attn_scalar": 256}

DENSE: dict[str, Architecture] = {
    "LlamaForCausalLM": Architecture(),
    "MistralForCausalLM": Architecture(defaults=_MISTRAL),
    "Qwen2ForCausalLM": Architecture(defaults=QWEN),
    "Qwen3ForCausalLM": Architecture(defaults={**QWEN, "head_dim": 128}),
    "GemmaForCausalLM": Architecture(defaults=_GEMMA),
    "Gemma2ForCausalLM": Architecture(defaults={**_GEMMA2, "attn_logit_softcapping": 50.0}, derived=_gemma),
    "Gemma3ForCausalLM": Architecture(defaults={**_GEMMA2, "max_position_embeddings": 131072}, derived=_gemma),
    "Phi3ForCausalLM": Architecture(
        defaults={"max_position_embeddings": 4096, "original_max_position_embeddings": 4096}
    ),
    "GPTNeoXForCausalLM": Architecture(),
    "GPT2LMHeadModel": _GPT2,
    "PhiForCausalLM": Architecture(),
    "OPTForCausalLM": Architecture(
        names={"intermediate_size": "ffn_dim"},
        defaults={"max_position_embeddings": 2048, "tie_word_embeddings": True},
    ),
    "FalconForCausalLM": Architecture(
        names={"intermediate_size": "ffn_hidden_size"}, defaults={"tie_word_embeddings": True}, derived=_falcon
    ),
    "StableLmForCausalLM": Architecture(defaults={"max_position_embeddings": 4096}),
    "CohereForCausalLM": Architecture(defaults={**_COHERE, "rope_theta": 5e5}),
    "Cohere2ForCausalLM": Architecture(defaults=_COHERE),
    "OlmoForCausalLM": Architecture(),
    "Olmo2ForCausalLM": Architecture(),
    "GraniteForCausalLM": Architecture(),
    "MinistralForCausalLM": Architecture(defaults=_MISTRAL),
    "Olmo3ForCausalLM": Architecture(),
    "Starcoder2ForCausalLM": Architecture(defaults={"max_position_embeddings": 4096, "tie_word_embeddings": True}),
    "GPTBigCodeForCausalLM": replace(_GPT2, derived=_bigcode),
    "GPTJForCausalLM": replace(_GPT2, defaults={"max_position_embeddings": 2048}),
    "BloomForCausalLM": Architecture(
        names={"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
        defaults={"tie_word_embeddings": True},
        derived=_bloom,
    ),
    "MptForCausalLM": Architecture(
        names={
            "hidden_size": "d_model",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "max_position_embeddings": "max_seq_len",
        },
        defaults={"max_position_embeddings": 2048, "tie_word_embeddings": True},
        derived=_mpt,
    ),
    "NemotronForCausalLM": Architecture(defaults={"max_position_embeddings": 4096}),
    "GlmForCausalLM": Architecture(defaults=_GLM),
    "Glm4ForCausalLM": Architecture(defaults=_GLM),
    "SmolLM3ForCausalLM": Architecture(
        defaults={"num_key_value_heads": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True}
    ),
    "Exaone4ForCausalLM": Architecture(defaults={"sliding_window": 4096}),
    "Ernie4_5ForCausalLM": Architecture(
        defaults={"head_dim": 128, "max_position_embeddings": 131072, "tie_word_embeddings": True}
    ),
    "ArceeForCausalLM": Architecture(defaults={"max_position_embeddings": 4096}),
    "SeedOssForCausalLM": Architecture(defaults={"head_dim": 128, "max_position_embeddings": 524288}),
}
