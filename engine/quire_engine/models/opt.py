"""OPT: learned positions; the 350M model has its norms after each part and a narrower embedding."""

from __future__ import annotations

from dataclasses import replace

from quire_engine.layers.norm import NormSpec
from quire_engine.memory_plan.config_fields import positive_int
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec, EmbeddingSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.naming import renamed
from quire_engine.models.settings import Config, activation, flag


def opt(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    bias, before = flag(config, "enable_bias", True), flag(config, "do_layer_norm_before", True)
    affine = flag(config, "layer_norm_elementwise_affine", True)
    layer = LayerSpec(
        attention=AttentionSpec(qkv_bias=bias, output_bias=bias),
        mlp=MLPSpec(activation=activation(config, "activation_function", "relu"), gated=False, bias=bias),
        norm=NormSpec("layer" if affine else "layer without parameters", 1e-5),
        arrangement="pre" if before else "post",
    )
    hidden = positive_int(config, "hidden_size")
    size = positive_int(config, "word_embed_proj_dim", default=hidden)
    embedding = EmbeddingSpec(
        size=None if size == hidden else size,
        learned_positions=positive_int(config, "max_position_embeddings"),
        first_position=2,
    )
    naming = renamed(
        {
            "model.embed_tokens": "model.decoder.embed_tokens",
            "model.embed.positions": "model.decoder.embed_positions",
            "model.embed.project_in": "model.decoder.project_in",
            "model.norm": "model.decoder.final_layer_norm",
            "project_out": "model.decoder.project_out",
            "input_layernorm": "self_attn_layer_norm",
            "post_attention_layernorm": "final_layer_norm",
            "self_attn.o_proj": "self_attn.out_proj",
            "mlp.up_proj": "fc1",
            "mlp.down_proj": "fc2",
        },
        layers="model.decoder.layers.",
        otherwise={"model.decoder.": "decoder."},
    )
    spec = DecoderSpec.of(config, layer, embedding=embedding, naming=naming)
    final = before and not flag(config, "_remove_final_layer_norm", False)
    return spec if final else replace(spec, norm=None)
