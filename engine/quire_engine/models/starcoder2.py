"""StarCoder2: LayerNorm, a plain MLP, biases, and a sliding window."""

from __future__ import annotations

from quire_engine.layers.norm import NormSpec
from quire_engine.models.attention_block import AttentionSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.llama import rope_of
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.naming import renamed
from quire_engine.models.settings import Config, activation, flag, number, optional_window, refuse


def starcoder2(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    refuse(config, "norm_type", "layer_norm")
    refuse(config, "mlp_type", "default")
    bias = flag(config, "use_bias", True)
    layer = LayerSpec(
        attention=AttentionSpec(rope=rope_of(config), window=optional_window(config), qkv_bias=bias, output_bias=bias),
        mlp=MLPSpec(activation=activation(config, "hidden_act", "gelu_pytorch_tanh"), gated=False, bias=bias),
        norm=NormSpec("layer", number(config, "norm_epsilon", 1e-5)),
    )
    return DecoderSpec.of(config, layer, naming=renamed({"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}))
