"""A feed-forward part of many experts, of which each token takes a few, and of shared ones, which all tokens take."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from quire_engine.distributed.ranks import tensor_ranks
from quire_engine.layers.activation import ACTIVATIONS
from quire_engine.layers.experts import Experts
from quire_engine.layers.linear import Linear
from quire_engine.layers.routing import Router, RouterSpec
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.models.mlp_block import GatedMLP, MLPSpec


@dataclass(frozen=True, kw_only=True)
class MoESpec:
    """What sets the experts of a family apart."""

    router: RouterSpec
    inner_size: int  # of each expert
    shared_size: int = 0  # inner size of the shared experts, which are one MLP; 0: there are none
    shared_gate: bool = False  # the shared experts' part is weighted by the sigmoid of a linear
    activation: str = "silu"

    def build(self, shape: ModelShape) -> nn.Module:
        return MoE(self, shape)


class MoE(nn.Module):
    def __init__(self, spec: MoESpec, shape: ModelShape) -> None:
        super().__init__()
        self.ranks = tensor_ranks()
        self.gate = Router(spec.router, shape.hidden_size)
        activation = ACTIVATIONS[spec.activation]
        self.experts = Experts(spec.router.num_experts, shape.hidden_size, spec.inner_size, activation)
        self.shared_experts: GatedMLP | None = None
        if spec.shared_size:
            size = replace(shape, intermediate_size=spec.shared_size)
            self.shared_experts = GatedMLP(MLPSpec(activation=spec.activation), size)
        self.shared_expert_gate = Linear(shape.hidden_size, 1) if spec.shared_gate else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size] -> the same."""
        weights, chosen = self.gate(x)
        out: torch.Tensor = self.experts(x, weights, chosen)
        if self.shared_experts is not None:
            shared = self.shared_experts.partial(x)
            if self.shared_expert_gate is not None:
                shared = shared * torch.sigmoid(self.shared_expert_gate(x))
            out = out + shared
        return self.ranks.all_reduce(out)
