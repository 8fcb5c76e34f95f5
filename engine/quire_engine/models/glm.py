"""GLM-4 of 9B (Glm) and the later GLM-4-0414 (Glm4), which has norms behind each part too."""

from __future__ import annotations

from quire_engine.layers.norm import NormSpec
from quire_engine.memory_plan.config_fields import positive_int
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.llama import rope_of
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.naming import renamed, stacked
from quire_engine.models.settings import Config, activation, flag, number


def glm(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    return _glm(config, sandwich=False)


def glm4(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    return _glm(config, sandwich=True)


def _glm(config: Config, *, sandwich: bool) -> DecoderSpec:
    rope = rope_of({"partial_rotary_factor": 0.5, **config}, interleaved=True)
    layer = LayerSpec(
        attention=AttentionSpec(rope=rope, qkv_bias=flag(config, "attention_bias", True)),
        mlp=MLPSpec(activation=activation(config, "hidden_act", "silu")),
        norm=NormSpec("rms", number(config, "rms_norm_eps", 1.5625e-07)),
        arrangement="sandwich" if sandwich else "pre",
    )
    norms = {
        "post_attention_layernorm": "post_self_attn_layernorm",
        "pre_feedforward_layernorm": "post_attention_layernorm",
        "post_feedforward_layernorm": "post_mlp_layernorm",
    }
    inner = positive_int(config, "intermediate_size")
    mlp = stacked("mlp.gate_up_proj", gate_proj=inner, up_proj=inner)
    naming = renamed(norms if sandwich else {}, fused={f"mlp.{name}": rows for name, rows in mlp.items()})
    return DecoderSpec.of(config, layer, naming=naming)
