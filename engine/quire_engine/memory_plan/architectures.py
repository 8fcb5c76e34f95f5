"""The architectures that are known, and what their config.json calls the sizes: by Llama's names, the common ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

Config = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How the config.json of one class is read."""

    names: Mapping[str, str] = field(default_factory=dict)
    """What a size is called there, by its common name. They are whole numbers."""

    defaults: Config = field(default_factory=dict)
    """What may be left out, by the common names."""

    derived: Callable[[Config], Config] = lambda _: {}
    """What follows from other fields, by the common names."""

    float32: tuple[str, ...] = ()
    """Endings of tensors that are kept in float32, whatever type is served."""


def _four_times(config: Config) -> Config:
    """An inner size that is four times the hidden one, where it is not given."""
    hidden = config.get("hidden_size")
    inner = config.get("intermediate_size")
    return {"intermediate_size": 4 * hidden} if inner is None and isinstance(hidden, int) else {}


def _falcon(config: Config) -> Config:
    """Falcon-7B shares one key and value among all heads, whatever `num_kv_heads` says; Falcon-40B groups heads."""
    heads = config.get("num_kv_heads") or config.get("num_attention_heads")
    if not config.get("new_decoder_architecture") and config.get("multi_query", True):
        heads = 1
    return {"num_key_value_heads": heads, **_four_times(config)}


def _qwen_moe(config: Config) -> Config:
    """transformers writes the number of experts under another name than Qwen's authors do."""
    return {"num_experts": config.get("num_experts") or config.get("num_local_experts")}


def _deepseek(config: Config) -> Config:
    """The cache holds one latent vector for all heads, with one rotated key (DeepSeek-V2, section 2.1)."""
    width = positive_int(config, "kv_lora_rank") + positive_int(config, "qk_rope_head_dim")
    return {"num_key_value_heads": 1, "head_dim": width, "kv_width": width}


def _bloom(config: Config) -> Config:
    """The first files say `n_embed`, and `seq_length` for the positions that the model was trained with."""
    hidden, length = config.get("hidden_size") or config.get("n_embed"), config.get("seq_length") or 2048
    sizes = {"hidden_size": hidden, "max_position_embeddings": length}
    return {**sizes, **_four_times({**config, **sizes})}


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
_GLM = {"head_dim": 128, "num_key_value_heads": 2, "max_position_embeddings": 131072}
_GEMMA = {"head_dim": 256, "max_position_embeddings": 8192, "tie_word_embeddings": True}

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
}
_EXPERTS = {"num_experts": "num_local_experts"}
_LATENT: Config = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}

_KNOWN: dict[str, Architecture] = {
    "LlamaForCausalLM": Architecture(),
    "MistralForCausalLM": Architecture(defaults={"sliding_window": 4096}),
    "Qwen2ForCausalLM": Architecture(),
    "Qwen3ForCausalLM": Architecture(defaults={"head_dim": 128}),
    "GemmaForCausalLM": Architecture(defaults=_GEMMA),
    "Gemma2ForCausalLM": Architecture(defaults=_GEMMA),
    "Gemma3ForCausalLM": Architecture(defaults={**_GEMMA, "max_position_embeddings": 131072}),
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
    "CohereForCausalLM": Architecture(defaults={"max_position_embeddings": 8192, "tie_word_embeddings": True}),
    "Cohere2ForCausalLM": Architecture(defaults={"max_position_embeddings": 8192, "tie_word_embeddings": True}),
    "OlmoForCausalLM": Architecture(),
    "Olmo2ForCausalLM": Architecture(),
    "GraniteForCausalLM": Architecture(),
    "MinistralForCausalLM": Architecture(defaults={"sliding_window": 4096, "max_position_embeddings": 131072}),
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
        derived=_four_times,
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
    "MixtralForCausalLM": Architecture(
        names=_EXPERTS,
        defaults={"num_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 131072},
    ),
    "Qwen2MoeForCausalLM": Architecture(derived=_qwen_moe),
    "Qwen3MoeForCausalLM": Architecture(derived=_qwen_moe),
    "OlmoeForCausalLM": Architecture(derived=_qwen_moe, defaults={"max_position_embeddings": 4096}),
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
ARCHITECTURES = tuple(_KNOWN)


def normalised(config: Config) -> dict[str, object]:
    """config.json's content with the common names added, for the first of its architectures that is known.

    Raises `ValueError` when none is known, or when a size is missing or no whole number.
    """
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    for name in names:
        if name in _KNOWN:
            return _read(_KNOWN[name], {**config, "architectures": [name]})
    if not names:
        raise ValueError('config.json has no "architectures": it must name the model\'s class')
    raise ValueError(f"config.json: the architecture {names[0]} is not supported: use one of {', '.join(_KNOWN)}")


def float32_tensors(architecture: str) -> tuple[str, ...]:
    """Endings of the tensors that an architecture's models keep in float32."""
    return _KNOWN[architecture].float32 if architecture in _KNOWN else ()


def _read(architecture: Architecture, config: dict[str, object]) -> dict[str, object]:
    for common, own in architecture.names.items():
        if config.get(own) is not None:
            config[common] = positive_int(config, own)
    result = {**architecture.defaults, **config}
    result |= architecture.derived(result)
    for common, own in architecture.names.items():
        if result.get(common) is None:
            raise ValueError(f"config.json has no {own!r}")
    return result


def positive_int(config: Config, name: str, *, default: int | None = None) -> int:
    """A size. Raises `ValueError` that names the field when it is missing or none."""
    value = config.get(name)
    if value is None:
        value = default
    if value is None:
        raise ValueError(f"config.json has no {name!r}")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"config.json: {name} is {value!r}: it must be a whole number above 0")
    return value
