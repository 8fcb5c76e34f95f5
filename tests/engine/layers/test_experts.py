"""Tokens go to the experts that they should, and every way of sharing experts gives the same sum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu
from transformers import DeepseekV2Config, DeepseekV3Config, MixtralConfig, Qwen2MoeConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeTopKRouter

from quire_engine.distributed.ranks import TensorRanks, build_for
from quire_engine.layers.experts import Expert, Experts
from quire_engine.layers.linear import LinearMethod, Unquantized, create_weights
from quire_engine.layers.routing import Router, RouterSpec
from quire_engine.loading.weights import weight_shards

NUM_EXPERTS, TOP_K, HIDDEN, INNER = 8, 3, 16, 12


def deepseek_v3() -> tuple[torch.nn.Module, RouterSpec]:
    config = DeepseekV3Config(
        hidden_size=HIDDEN, n_routed_experts=NUM_EXPERTS, num_experts_per_tok=TOP_K, n_group=4, topk_group=2
    )
    spec = RouterSpec(
        num_experts=NUM_EXPERTS,
        top_k=TOP_K,
        scores="sigmoid",
        renormalised=True,
        scale=2.5,
        corrected=True,
        num_groups=4,
        top_groups=2,
        group_score="two best",
        float32=True,
    )
    return DeepseekV3TopkRouter(config), spec


def deepseek_v2() -> tuple[torch.nn.Module, RouterSpec]:
    groups = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
    config = DeepseekV2Config(
        hidden_size=HIDDEN,
        num_attention_heads=4,
        n_routed_experts=NUM_EXPERTS,
        num_experts_per_tok=TOP_K,
        routed_scaling_factor=1.5,
        **groups,
    )
    spec = RouterSpec(
        num_experts=NUM_EXPERTS, top_k=TOP_K, scale=1.5, num_groups=4, top_groups=2, group_score="best", float32=True
    )
    return DeepseekV2TopkRouter(config), spec


def mixtral() -> tuple[torch.nn.Module, RouterSpec]:
    config = MixtralConfig(hidden_size=HIDDEN, num_local_experts=NUM_EXPERTS, num_experts_per_tok=TOP_K)
    return MixtralTopKRouter(config), RouterSpec(num_experts=NUM_EXPERTS, top_k=TOP_K, renormalised=True)


def qwen2() -> tuple[torch.nn.Module, RouterSpec]:
    config = Qwen2MoeConfig(hidden_size=HIDDEN, num_experts=NUM_EXPERTS, num_experts_per_tok=TOP_K)
    return Qwen2MoeTopKRouter(config), RouterSpec(num_experts=NUM_EXPERTS, top_k=TOP_K)


@pytest.mark.parametrize("family", [deepseek_v3, deepseek_v2, mixtral, qwen2])
def test_tokens_get_the_experts_and_weights_of_transformers_routers(family: object) -> None:
    theirs, spec = family()  # type: ignore[operator]  # a fixture that is called
    ours = Router(spec, HIDDEN)
    torch.manual_seed(0)
    with torch.no_grad():
        for target in (theirs.weight, getattr(theirs, "e_score_correction_bias", theirs.weight)):
            target.normal_()
        ours.weight.copy_(theirs.weight)
        if ours.e_score_correction_bias is not None:
            ours.e_score_correction_bias.copy_(theirs.e_score_correction_bias)
    x = torch.randn(200, HIDDEN)
    weights, experts = ours(x)
    _, their_weights, their_experts = theirs(x)
    order, their_order = experts.argsort(dim=1), their_experts.argsort(dim=1)
    assert torch.equal(experts.gather(1, order), their_experts.gather(1, their_order))
    torch.testing.assert_close(weights.gather(1, order), their_weights.gather(1, their_order).detach())


@dataclass(frozen=True)
class Apart(TensorRanks):
    """Ranks that never meet: what one of them adds is seen."""

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x


def whole() -> Experts:
    torch.manual_seed(1)
    experts = Experts(NUM_EXPERTS, HIDDEN, INNER, silu)
    create_weights(experts)
    for stack in (experts.gate_up, experts.down):
        assert stack.weight is not None
        stack.weight.normal_(0.0, 0.2)
    return experts


def part_of(experts: Experts, ranks: TensorRanks) -> Experts:
    """What one of the ranks holds, filled as loading fills it."""
    with build_for(ranks):
        part = Experts(NUM_EXPERTS, HIDDEN, INNER, silu)
    create_weights(part)
    tensors = {name: shard.target for name, shard in weight_shards(experts).items()}
    for name, shard in weight_shards(part).items():
        shard.fill(tensors[name][shard.rows, shard.columns])
    return part


def expected(experts: Experts, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Token by token."""
    rows = []
    for token, own_weights, own in zip(x, weights, chosen.tolist(), strict=True):
        total = torch.zeros(HIDDEN)
        for weight, index in zip(own_weights, own, strict=True):
            expert = experts.get_submodule(str(index))
            assert isinstance(expert, Expert)
            gate, up = expert.gate_up_proj(token).chunk(2)
            total += weight * expert.down_proj(silu(gate) * up)
        rows.append(total)
    return torch.stack(rows)


def batch(num_tokens: int, num_used: int = NUM_EXPERTS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    x = torch.randn(num_tokens, HIDDEN, generator=generator)
    chosen = torch.rand(num_tokens, num_used, generator=generator).argsort(dim=1)[:, :TOP_K]
    return x, torch.rand(num_tokens, TOP_K, generator=generator), chosen


@settings(deadline=None, max_examples=30)
@given(num_tokens=st.integers(1, 40), num_used=st.integers(TOP_K, NUM_EXPERTS))
def test_each_token_is_the_weighted_sum_of_its_experts(num_tokens: int, num_used: int) -> None:
    experts, (x, weights, chosen) = whole(), batch(num_tokens, num_used)
    torch.testing.assert_close(experts(x, weights, chosen), expected(experts, x, weights, chosen))


def test_a_tokens_result_does_not_depend_on_those_beside_it() -> None:
    experts, (x, weights, chosen) = whole(), batch(30)
    together = experts(x, weights, chosen)
    alone = torch.cat([experts(x[i : i + 1], weights[i : i + 1], chosen[i : i + 1]) for i in range(30)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("expert_parallel", [False, True], ids=["each in part", "some whole"])
def test_what_ranks_add_sums_up_to_the_whole(size: int, expert_parallel: bool) -> None:
    experts, (x, weights, chosen) = whole(), batch(30)
    parts = [part_of(experts, Apart(rank, size, expert_parallel=expert_parallel)) for rank in range(size)]
    torch.testing.assert_close(sum(p(x, weights, chosen) for p in parts), experts(x, weights, chosen))
    held = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    assert held == [sum(parameter.numel() for parameter in experts.parameters()) // size] * size


def test_plain_weights_are_one_allocation_and_other_methods_have_their_own() -> None:
    class Other(Unquantized):
        pass

    def parameters(method: LinearMethod) -> Iterator[tuple[str, tuple[int, ...]]]:
        experts = Experts(2, HIDDEN, INNER, silu)
        create_weights(experts, lambda path, layer: method)
        return ((name, tuple(parameter.shape)) for name, parameter in experts.named_parameters())

    assert dict(parameters(Unquantized())) == {
        "gate_up.weight": (2, 2 * INNER, HIDDEN),
        "down.weight": (2, HIDDEN, INNER),
    }
    assert sorted(name for name, _ in parameters(Other())) == [
        f"{i}.{name}.weight" for i in range(2) for name in ("down_proj", "gate_up_proj")
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 9}, "a token has 9 experts, and there are 8"),
        ({"num_groups": 3}, "8 experts are in 3 groups"),
        ({"num_groups": 8, "top_groups": 2, "top_k": 3}, "its 2 groups have fewer"),
    ],
)
def test_a_router_that_cannot_be_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RouterSpec(**{"num_experts": NUM_EXPERTS, "top_k": TOP_K} | changes)  # type: ignore[arg-type]  # mixed values
