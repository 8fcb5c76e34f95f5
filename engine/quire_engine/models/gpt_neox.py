"""GPT-NeoX, Pythia and Dolly: LayerNorm, parallel blocks, part of each head rotated."""

from __future__ import annotations

from quire_engine.layers.norm import NormSpec
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.llama import rope_of
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.naming import grouped_heads, renamed
from quire_engine.models.settings import Config, activation, flag, number


def gpt_neox(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    older = {"rope_theta": config.get("rotary_emb_base"), "partial_rotary_factor": config.get("rotary_pct", 0.25)}
    bias = flag(config, "attention_bias", True)
    parallel = flag(config, "use_parallel_residual", True)
    layer = LayerSpec(
        attention=AttentionSpec(rope=rope_of({**older, **config}), qkv_bias=bias, output_bias=bias),
        mlp=MLPSpec(activation=activation(config, "hidden_act", "gelu"), gated=False, bias=True),
        norm=NormSpec("layer", number(config, "layer_norm_eps", 1e-5)),
        arrangement="parallel, two norms" if parallel else "pre",
    )
    naming = renamed(
        {
            "model.embed_tokens": "gpt_neox.embed_in",
            "model.norm": "gpt_neox.final_layer_norm",
            "lm_head": "embed_out",
            "self_attn.o_proj": "attention.dense",
            "mlp.up_proj": "mlp.dense_h_to_4h",
            "mlp.down_proj": "mlp.dense_4h_to_h",
        },
        layers="gpt_neox.layers.",
        fused=grouped_heads("attention.query_key_value", ModelShape.from_config(config)),
        otherwise={"embed_out.": "lm_head.", "gpt_neox.": ""},
    )
    return DecoderSpec.of(config, layer, naming=naming)
