"""StableLM: LayerNorm, part of each head rotated, in the 12B model norms for each head and a parallel block."""

from __future__ import annotations

from quire_engine.layers.norm import HeadNormSpec, NormSpec
from quire_engine.memory_plan.config_fields import positive_int
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.llama import rope_of
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.naming import renamed
from quire_engine.models.settings import Config, activation, flag, number


def stablelm(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    norm = NormSpec("layer", number(config, "layer_norm_eps", 1e-5))
    qk_norm = HeadNormSpec("each head, apart", norm) if flag(config, "qk_layernorm", False) else None
    layer = LayerSpec(
        attention=AttentionSpec(
            rope=rope_of({"partial_rotary_factor": 0.25, **config}),
            qkv_bias=flag(config, "use_qkv_bias", False),
            qk_norm=qk_norm,
        ),
        mlp=MLPSpec(activation=activation(config, "hidden_act", "silu")),
        norm=norm,
        arrangement="parallel" if flag(config, "use_parallel_residual", False) else "pre",
    )
    heads = range(positive_int(config, "num_attention_heads"))
    names = {f"self_attn.{q}_norm.norms.{i}": f"self_attn.{q}_layernorm.norms.{i}" for q in "qk" for i in heads}
    return DecoderSpec.of(config, layer, naming=renamed(names))
