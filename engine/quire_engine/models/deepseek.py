"""DeepSeek-V2, V3 and R1: latent attention, dense layers first, then experts beside shared ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

from quire_engine.layers.rotary import RopeSettings
from quire_engine.layers.routing import RouterSpec
from quire_engine.memory_plan.config_fields import positive_int
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.decoder_layer import LayerSpec, MixerSpec
from quire_engine.models.latent_block import LatentAttentionSpec
from quire_engine.models.llama import rms_norm
from quire_engine.models.mlp_block import MLPSpec
from quire_engine.models.moe_block import MoESpec
from quire_engine.models.naming import Naming
from quire_engine.models.settings import Config, activation, flag, number, refuse

_MOST_SHARED = 1000


def deepseek_v2(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    method = config.get("topk_method") or "greedy"
    if method not in ("greedy", "group_limited_greedy"):
        raise ValueError(f"config.json: topk_method is {method!r}: it must be greedy or group_limited_greedy")
    refuse(config, "norm_topk_prob", False)
    refuse(config, "scoring_func", "softmax")
    grouped = method == "group_limited_greedy"
    router = RouterSpec(
        num_experts=positive_int(config, "num_experts"),
        top_k=positive_int(config, "num_experts_per_tok"),
        scale=number(config, "routed_scaling_factor", 1.0),
        num_groups=positive_int(config, "n_group") if grouped else 1,
        top_groups=positive_int(config, "topk_group") if grouped else 1,
        float32=True,
    )
    return _deepseek(config, router, num_shared=2, num_dense=0)


def deepseek_v3(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    refuse(config, "scoring_func", "sigmoid")
    refuse(config, "topk_method", "noaux_tc")
    return _deepseek(config, corrected_router(config), num_shared=1, num_dense=3)


def _deepseek(config: Config, router: RouterSpec, *, num_shared: int, num_dense: int) -> DecoderSpec:
    refuse(config, "moe_layer_freq", 1)
    attention = _attention(config, flag(config, "attention_bias", False))
    return dense_then_sparse(config, [attention], router, num_shared=num_shared, num_dense=num_dense)


def corrected_router(config: Config) -> RouterSpec:
    """DeepSeek-V3's: sigmoids, and a bias that steers the choice (section 2.1.2)."""
    return RouterSpec(
        num_experts=positive_int(config, "num_experts"),
        top_k=positive_int(config, "num_experts_per_tok"),
        scores="sigmoid",
        renormalised=flag(config, "norm_topk_prob", False),
        scale=number(config, "routed_scaling_factor", 1.0),
        corrected=True,
        num_groups=positive_int(config, "n_group", default=1),
        top_groups=positive_int(config, "topk_group", default=1),
        group_score="two best",
        float32=True,
    )


def dense_then_sparse(
    config: Config, attentions: Sequence[MixerSpec], router: RouterSpec, *, num_shared: int, num_dense: int
) -> DecoderSpec:
    """Layers of the `attentions`, one for each or one for all. The first few are dense, the others have experts.

    `num_shared` and `num_dense` stand for what config.json leaves out.
    """
    num_layers = positive_int(config, "num_hidden_layers")
    num_shared = int(number(config, "n_shared_experts", num_shared))
    if not 0 <= num_shared <= _MOST_SHARED:
        raise ValueError(f"config.json: n_shared_experts is {num_shared}: it must be from 0 to {_MOST_SHARED}")
    num_dense = int(number(config, "first_k_dense_replace", num_dense))
    act, inner_size = activation(config, "hidden_act", "silu"), positive_int(config, "moe_intermediate_size")
    dense = MLPSpec(activation=act, bias=flag(config, "mlp_bias", False))
    sparse = MoESpec(router=router, inner_size=inner_size, shared_size=num_shared * inner_size, activation=act)
    layers = tuple(
        LayerSpec(
            attention=attentions[i % len(attentions)], mlp=dense if i < num_dense else sparse, norm=rms_norm(config)
        )
        for i in range(num_layers)
    )
    # After the last layer some checkpoints have one that drafts a token ahead.
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
