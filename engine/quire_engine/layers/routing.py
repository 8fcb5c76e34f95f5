"""Which experts each token goes to, and with what weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """How a family scores experts and picks among them.

    With `num_groups`, only experts of the `top_groups` best groups are picked. A group is as good as its best expert,
    or as its two best together (DeepSeek-V2, section 2.2.2; DeepSeek-V3, sections 2.1.2 and 4.2).
    """

    num_experts: int
    top_k: int
    scores: Literal["softmax", "sigmoid"] = "softmax"
    renormalised: bool = False  # the weights of the picked ones sum to 1
    scale: float = 1.0  # of the weights, at last
    corrected: bool = False  # a bias on the scores, for the picking only
    num_groups: int = 1
    top_groups: int = 1
    group_score: Literal["best", "two best"] = "best"
    float32: bool = False  # its weights and logits are, whatever the model's type

    def __post_init__(self) -> None:
        if not 0 < self.top_k <= self.num_experts:
            raise ValueError(f"config.json: a token has {self.top_k} experts, and there are {self.num_experts}")
        if self.num_experts % self.num_groups or not 0 < self.top_groups <= self.num_groups:
            raise ValueError(
                f"config.json: {self.num_experts} experts are in {self.num_groups} groups, of which a token has "
                f"{self.top_groups}: groups must be of equal size, and enough"
            )
        if self.top_k > self.top_groups * (self.num_experts // self.num_groups):
            raise ValueError(
                f"config.json: a token has {self.top_k} experts, and its {self.top_groups} groups have fewer"
            )


class Router(nn.Module):
    """The gate of a mixture of experts. Whole on every rank."""

    def __init__(self, spec: RouterSpec, hidden_size: int) -> None:
        super().__init__()
        self.spec = spec
        weight = torch.empty(spec.num_experts, hidden_size, dtype=torch.float32 if spec.float32 else None)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.e_score_correction_bias: nn.Parameter | None = None
        if spec.corrected:
            bias = torch.empty(spec.num_experts, dtype=torch.float32)
            self.e_score_correction_bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[num_tokens, hidden_size] -> weights float32 and experts int64, both [num_tokens, top_k]."""
        if self.spec.float32:
            logits = functional.linear(x.float(), self.weight)
        else:
            logits = functional.linear(x, self.weight).float()
        return pick_experts(logits, self.spec, self.e_score_correction_bias)


def pick_experts(
    logits: torch.Tensor, spec: RouterSpec, correction: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [num_tokens, num_experts] float32 -> weights float32 and experts int64, both [num_tokens, top_k]."""
    scores = logits.softmax(dim=-1) if spec.scores == "softmax" else logits.sigmoid()
    wanted = scores if correction is None else scores + correction
    if spec.num_groups > 1:
        wanted = _of_best_groups(wanted, spec)
    experts = wanted.topk(spec.top_k, dim=-1).indices
    weights = scores.gather(1, experts)
    if spec.renormalised:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return weights * spec.scale if spec.scale != 1.0 else weights, experts


def _of_best_groups(scores: torch.Tensor, spec: RouterSpec) -> torch.Tensor:
    """The scores, minus infinity where the expert's group is not among the best."""
    groups = scores.view(len(scores), spec.num_groups, -1)
    best = groups.topk(1 if spec.group_score == "best" else min(2, groups.shape[2]), dim=-1).values.sum(dim=-1)
    chosen = torch.zeros_like(best, dtype=torch.bool).scatter_(1, best.topk(spec.top_groups, dim=-1).indices, True)
    masked = groups.masked_fill(~chosen[:, :, None], float("-inf"))
    return masked.flatten(1)
