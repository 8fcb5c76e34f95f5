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

    unused: tuple[str, ...] = ()
    """Beginnings of tensors that are not loaded."""

    tower: tuple[str, ...] = ()
    """Beginnings of tensors that belong to an encoder of images, which each GPU has whole."""

    decoders: Mapping[str, tuple[str, Config]] = field(default_factory=dict)
    """Where the decoder's sizes stand in `text_config`: its class and what may be left out, by its `model_type`."""


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
_QWEN = {"sliding_window": 4096, "max_window_layers": 28, "max_position_embeddings": 32768}
_GLM = {"head_dim": 128, "num_key_value_heads": 2, "max_position_embeddings": 131072}
_COHERE = {"max_position_embeddings": 8192, "tie_word_embeddings": True}
_GEMMA = {"head_dim": 256, "max_position_embeddings": 8192, "tie_word_embeddings": True}
_GEMMA2 = {**_GEMMA, "query_pre_attn_scalar": 256}

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


def _encoder(config: Config) -> Config:
    """An encoder keeps nothing of a token."""
    return {"kv_width": 0, "num_key_value_heads": config.get("num_attention_heads")}


def _roberta(config: Config) -> Config:
    """Positions count from the padding's id on, which stands before the first."""
    last, padding = positive_int(config, "max_position_embeddings"), config.get("pad_token_id")
    return {**_encoder(config), "max_position_embeddings": last - (padding if isinstance(padding, int) else 1) - 1}


_BERT = Architecture(
    defaults={"max_position_embeddings": 512, "type_vocab_size": 2},
    derived=_encoder,
    unused=("pooler.", "bert.pooler.", "cls."),
)
_ROBERTA = Architecture(
    defaults={"max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 1},
    derived=_roberta,
    unused=("pooler.", "roberta.pooler.", "lm_head."),
)
_DISTILBERT = Architecture(
    names={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
    },
    defaults={"max_position_embeddings": 512},
    derived=_encoder,
    unused=("vocab_transform.", "vocab_layer_norm.", "vocab_projector."),
)
_EXPERTS = {"num_experts": "num_local_experts"}
_SEVEN_BILLION: Config = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
_TOWER = ("vision_tower.", "model.vision_tower.")
_BESIDE_TOWER = ("multi_modal_projector.", "model.multi_modal_projector.", "image_newline", "model.image_newline")
_LLAVA = Architecture(
    decoders={
        "llama": ("LlamaForCausalLM", {**_SEVEN_BILLION, "intermediate_size": 11008}),
        "mistral": (
            "MistralForCausalLM",
            {
                **_SEVEN_BILLION,
                "intermediate_size": 14336,
                "num_key_value_heads": 8,
                "max_position_embeddings": 131072,
            },
        ),
        "qwen2": ("Qwen2ForCausalLM", {**_SEVEN_BILLION, "vocab_size": 151936, "intermediate_size": 22016}),
    },
    tower=_TOWER + _BESIDE_TOWER,
    unused=tuple(f"{tower}{model}post_layernorm." for tower in _TOWER for model in ("", "vision_model.")),
)
_PHI4_IMAGES = "model.embed_tokens_extend.image_embed."
_PHI4_MULTIMODAL = Architecture(
    defaults={"max_position_embeddings": 131072, "original_max_position_embeddings": 4096},
    tower=(_PHI4_IMAGES,),
    unused=(
        "model.embed_tokens_extend.audio_embed.",
        f"{_PHI4_IMAGES}img_processor.post_layernorm.",
        f"{_PHI4_IMAGES}img_processor.head.",
    ),
)
_LATENT: Config = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}

_KNOWN: dict[str, Architecture] = {
    "LlamaForCausalLM": Architecture(),
    "MistralForCausalLM": Architecture(defaults=_MISTRAL),
    "Qwen2ForCausalLM": Architecture(defaults=_QWEN),
    "Qwen3ForCausalLM": Architecture(defaults={**_QWEN, "head_dim": 128}),
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
    "Qwen2MoeForCausalLM": Architecture(derived=_qwen_moe, defaults=_QWEN),
    "Qwen3MoeForCausalLM": Architecture(derived=_qwen_moe, defaults=_QWEN),
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
    "LlavaForConditionalGeneration": _LLAVA,
    "LlavaNextForConditionalGeneration": _LLAVA,
    "Phi4MultimodalForCausalLM": _PHI4_MULTIMODAL,
    "Dots1ForCausalLM": Architecture(
        names=_ROUTED, defaults={"sliding_window": 4096, "max_window_layers": 62}, float32=_ROUTER
    ),
}
ARCHITECTURES = tuple(_KNOWN)
_OTHER_SPELLINGS = {
    "MPTForCausalLM": "MptForCausalLM",
    "RWForCausalLM": "FalconForCausalLM",
    "LLaMAForCausalLM": "LlamaForCausalLM",
}
"""What authors call a class in files that are older than transformers' own."""

_ENCODERS: dict[str, Architecture] = {
    "BertModel": _BERT,
    "BertForMaskedLM": _BERT,
    "RobertaModel": _ROBERTA,
    "RobertaForMaskedLM": _ROBERTA,
    "XLMRobertaModel": _ROBERTA,
    "XLMRobertaForMaskedLM": _ROBERTA,
    "DistilBertModel": _DISTILBERT,
    "DistilBertForMaskedLM": _DISTILBERT,
}
ENCODERS = tuple(_ENCODERS)
"""Those that see a prompt in both directions: they make embeddings alone."""


# No model comes near: what is above is a mistake, and would be counted up to before anything else is found.
_MOST = {"num_hidden_layers": 10_000, "num_experts": 10_000}
_MOST_OF_ALL = (1 << 31) - 1


def normalised(config: Config) -> dict[str, object]:
    """config.json's content with the common names added, for the first of its architectures that is known.

    Raises `ValueError` when none is known, or when a size is missing or no whole number.
    """
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    for written in names:
        name = usual_spelling(written) if isinstance(written, str) else ""
        known = _known(name)
        if known is not None:
            read = _read(known, {**config, "architectures": [name]})
            return read | {"tie_word_embeddings": True} if makes_embeddings(name) else read
    if not names:
        raise ValueError('config.json has no "architectures": it must name the model\'s class')
    raise ValueError(f"config.json: the architecture {names[0]} is not supported: use one of {', '.join(_KNOWN)}")


def usual_spelling(architecture: str) -> str:
    """What the class of a config.json is called here; what is not known stays as it is."""
    return _OTHER_SPELLINGS.get(architecture, architecture)


def float32_tensors(architecture: str) -> tuple[str, ...]:
    """Endings of the tensors that an architecture's models keep in float32."""
    known = _known(architecture)
    return () if known is None else known.float32


def unused_tensors(architecture: str) -> tuple[str, ...]:
    """Beginnings of the tensors that stand in an architecture's checkpoints and are not loaded."""
    known = _known(architecture)
    return () if known is None else known.unused


def tower_tensors(architecture: str) -> tuple[str, ...]:
    """Beginnings of the tensors of an architecture's encoder of images."""
    known = _known(architecture)
    return () if known is None else known.tower


def with_head(architecture: str) -> str | None:
    """The decoder that a class without an output head, such as LlamaModel, is a part of; None where it is none."""
    base = architecture.removesuffix("Model") if architecture.endswith("Model") else None
    heads = () if base is None else (f"{base}ForCausalLM", f"{base}LMHeadModel")
    return next((name for name in heads if name in _KNOWN), None)


def makes_embeddings(architecture: str) -> bool:
    """Whether a class has nothing to generate text by: an encoder, or a decoder without its head."""
    return architecture in _ENCODERS or with_head(architecture) is not None


def without_head(architecture: str) -> str:
    """The other way round, as LlamaModel of LlamaForCausalLM; what has no head is itself."""
    return (
        f"{architecture.removesuffix('ForCausalLM').removesuffix('LMHeadModel')}Model"
        if architecture in _KNOWN
        else architecture
    )


def _known(name: str) -> Architecture | None:
    return _ENCODERS.get(name) or _KNOWN.get(with_head(name) or name)


def _read(architecture: Architecture, config: dict[str, object]) -> dict[str, object]:
    if architecture.decoders:
        return _read_decoder(architecture, config)
    for common, own in architecture.names.items():
        if config.get(own) is not None:
            config[common] = positive_int(config, own)
    result = {**architecture.defaults, **config}
    result |= architecture.derived(result)
    for common, own in architecture.names.items():
        if result.get(common) is None:
            raise ValueError(f"config.json has no {own!r}")
    return result


def _read_decoder(architecture: Architecture, config: dict[str, object]) -> dict[str, object]:
    """What the decoder's `text_config` says, among the whole model's own settings."""
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise ValueError(f"config.json: text_config is {text!r}: it must be an object")
    kind = text.get("model_type", "llama")
    if not isinstance(kind, str) or kind not in architecture.decoders:
        known = ", ".join(architecture.decoders)
        raise ValueError(f"config.json: text_config.model_type is {kind!r}: it must be one of {known}")
    name, defaults = architecture.decoders[kind]
    read = _read(_KNOWN[name], {**defaults, **text})
    dtype = next((c[key] for c in (config, text) for key in ("dtype", "torch_dtype") if c.get(key)), None)
    tied = bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
    own = {"architectures": config["architectures"], "dtype": dtype, "tie_word_embeddings": tied}
    return {**config, **read, **own}


def positive_int(config: Config, name: str, *, default: int | None = None) -> int:
    """A size. Raises `ValueError` that names the field when it is missing or none."""
    value = config.get(name)
    if value is None:
        value = default
    if value is None:
        raise ValueError(f"config.json has no {name!r}")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"config.json: {name} is {value!r}: it must be a whole number above 0")
    most = _MOST.get(name, _MOST_OF_ALL)
    if value > most:
        raise ValueError(f"config.json: {name} is {value}: it must be at most {most}")
    return value
