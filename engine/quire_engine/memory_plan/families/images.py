"""Decoders whose prompts may have images."""

from __future__ import annotations

from quire_engine.memory_plan.config_fields import Config
from quire_engine.memory_plan.families.architecture import Architecture

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
_QWEN2_VL_DECODER: tuple[str, Config] = (
    "Qwen2ForCausalLM",
    {"num_key_value_heads": 8, "max_position_embeddings": 32768, "rope_theta": 1e6, "rms_norm_eps": 1e-5},
)
_QWEN2_VL = Architecture(
    decoders={"qwen2_vl_text": _QWEN2_VL_DECODER, "qwen2_vl": _QWEN2_VL_DECODER},
    flat=True,
    tower=("visual.", "model.visual."),
)

WITH_IMAGES: dict[str, Architecture] = {
    "LlavaForConditionalGeneration": _LLAVA,
    "LlavaNextForConditionalGeneration": _LLAVA,
    "Phi4MultimodalForCausalLM": _PHI4_MULTIMODAL,
    "Qwen2VLForConditionalGeneration": _QWEN2_VL,
}
