"""GPT-J: a parallel block, neighbours rotated in the first features of each head."""

from __future__ import annotations

from dataclasses import replace

from quire_engine.layers.norm import NormSpec
from quire_engine.memory_plan.config_fields import positive_int
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.llama import rope_of
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.naming import renamed
from quire_engine.models.settings import Config, activation, number


def gptj(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    rope = rope_of(config, interleaved=True)
    rotated = positive_int(config, "rotary_dim", default=64)
    if rotated > rope.dim or rotated % 2:
        raise ValueError(f"config.json: rotary_dim is {rotated}: it must be even and at most {rope.dim}")
    layer = LayerSpec(
        attention=AttentionSpec(rope=replace(rope, dim=rotated)),
        mlp=MLPSpec(activation=activation(config, "activation_function", "gelu_new"), gated=False, bias=True),
        norm=NormSpec("layer", number(config, "layer_norm_epsilon", 1e-5)),
        arrangement="parallel",
    )
    attention = {f"self_attn.{x}_proj": f"attn.{x}_proj" for x in "qkv"}
    naming = renamed(
        {
            "model.embed_tokens": "transformer.wte",
            "model.norm": "transformer.ln_f",
            "input_layernorm": "ln_1",
            **attention,
            "self_attn.o_proj": "attn.out_proj",
            "mlp.up_proj": "mlp.fc_in",
            "mlp.down_proj": "mlp.fc_out",
        },
        layers="transformer.h.",
        otherwise={"transformer.": ""},
    )
    return DecoderSpec.of(config, layer, head_bias=True, naming=naming)
