"""DeepSeek-V2, V3 and R1: latent attention, dense layers first, then experts beside shared ones."""

from __future__ import annotations

import math

from quire_engine.layers.rotary import RopeSettings
from quire_engine.layers.routing import RouterSpec
from quire_engine.memory_plan.architectures import positive_int
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.latent_block import LatentAttentionSpec
from quire_engine.models.llama import rms_norm
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.moe_block import MoESpec
from quire_engine.models.naming import Naming
from quire_engine.models.settings import Config, activation, flag, number, refuse


def deepseek_v2(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    method = config.get("topk_method") or "greedy"
    if method not in ("greedy", "group_limited_greedy"):
        raise ValueError(f"config.json: topk_method is {method!r}: it must be greedy or group_limited_greedy")
    refuse(config, "norm_topk_prob", False)
    grouped = method == "group_limited_greedy"
    router = RouterSpec(
        num_experts=positive_int(config, "num_experts"),
        top_k=positive_int(config, "num_experts_per_tok"),
        scale=number(config, "routed_scaling_factor", 1.0),
        num_groups=positive_int(config, "n_group") if grouped else 1,
        top_groups=positive_int(config, "topk_group") if grouped else 1,
        float32=True,
    )
    return _deepseek(config, router, num_shared=positive_int(config, "n_shared_experts", default=2), num_dense=0)


def deepseek_v3(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    router = RouterSpec(
        num_experts=positive_int(config, "num_experts"),
        top_k=positive_int(config, "num_experts_per_tok"),
        scores="sigmoid",
        renormalised=flag(config, "norm_topk_prob", True),
        scale=number(config, "routed_scaling_factor", 2.5),
        corrected=True,
        num_groups=positive_int(config, "n_group", default=8),
        top_groups=positive_int(config, "topk_group", default=4),
        group_score="two best",
        float32=True,
    )
    return _deepseek(config, router, num_shared=positive_int(config, "n_shared_experts", default=1), num_dense=3)


def _deepseek(config: Config, router: RouterSpec, *, num_shared: int, num_dense: int) -> DecoderSpec:
    num_layers = positive_int(config, "num_hidden_layers")
    num_dense = int(number(config, "first_k_dense_replace", num_dense))
    bias, act = flag(config, "attention_bias", False), activation(config, "hidden_act", "silu")
    inner_size = positive_int(config, "moe_intermediate_size")
    dense = LayerSpec(
        attention=_attention(config, bias),
        mlp=MLPSpec(activation=act, bias=flag(config, "mlp_bias", False)),
        norm=rms_norm(config),
    )
    sparse = LayerSpec(
        attention=dense.attention,
        mlp=MoESpec(router=router, inner_size=inner_size, shared_size=num_shared * inner_size, activation=act),
        norm=dense.norm,
    )
    layers = tuple(dense if i < num_dense else sparse for i in range(num_layers))
    # After the last layer V3 has one that drafts a token ahead.
    naming = Naming(unused_prefixes=(f"model.layers.{num_layers}.",))
    return DecoderSpec.of(config, layers, naming=naming)


def _attention(config: Config, bias: bool) -> LatentAttentionSpec:
    rope_dim, nope_dim = positive_int(config, "qk_rope_head_dim"), positive_int(config, "qk_nope_head_dim")
    rope = RopeSettings.from_config(
        config,
        rope_dim,
        positive_int(config, "max_position_embeddings", default=2048),
        interleaved=flag(config, "rope_interleave", True),
    )
    return LatentAttentionSpec(
        rope=rope,
        q_rank=None if config.get("q_lora_rank", 1536) is None else positive_int(config, "q_lora_rank", default=1536),
        kv_rank=positive_int(config, "kv_lora_rank"),
        nope_dim=nope_dim,
        value_dim=positive_int(config, "v_head_dim"),
        scale=(nope_dim + rope_dim) ** -0.5 * _stretch(rope) ** 2,
        bias=bias,
    )


def _stretch(rope: RopeSettings) -> float:
    """What a stretched rope asks queries and keys to be multiplied by (Peng et al., 2023, section 3.4)."""
    scale = rope.parameters.get("mscale_all_dim")
    if rope.rope_type == "default" or not scale:
        return 1.0
    factor = rope.number("factor")
    return 0.1 * rope.number("mscale_all_dim") * math.log(factor) + 1.0 if factor > 1 else 1.0
