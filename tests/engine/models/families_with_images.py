"""Decoders whose prompts may have images."""

from __future__ import annotations

from typing import Any

from tests.engine.models.family import LONG_FACTORS, MAX_MODEL_LEN, SIZES, Family

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
QWEN2_VL: dict[str, Any] = {
    "text_config": LONGER
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
    "vision_config": {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 64,
        "num_heads": 4,
        "patch_size": 4,
        "mlp_ratio": 2,
    },
    "image_token_id": 96,
    "video_token_id": 97,
    "vision_start_token_id": 98,
    "vision_end_token_id": 99,
}

WITH_IMAGES = [
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
    Family(
        models="Qwen2-VL (images)",
        architecture="Qwen2VLForConditionalGeneration",
        config="Qwen2VLConfig",
        cases={
            "positions by time, height and width": QWEN2_VL,
            "tied head, another activation of the encoder": QWEN2_VL
            | {"tie_word_embeddings": True, "vision_config": QWEN2_VL["vision_config"] | {"hidden_act": "gelu"}},
        },
    ),
]
