"""A layer: attention and feed-forward, and where the norms and residuals around them are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn

from quire_engine.layers.norm import NormSpec, add_and_norm
from quire_engine.layers.rotary import RopeSettings
from quire_engine.memory_plan.model_shape import ModelShape

Rotation = tuple[torch.Tensor, torch.Tensor] | None


class MixerSpec(Protocol):
    """The part of a layer that looks at other tokens."""

    @property
    def rope(self) -> RopeSettings | None:
        """The rotary embedding whose angles `forward` is given."""
        ...

    def build(self, shape: ModelShape) -> nn.Module:
        """A module whose forward takes [num_tokens, hidden_size] and a `Rotation`, and gives the former."""
        ...


class FeedForwardSpec(Protocol):
    """The part of a layer that looks at each token alone."""

    def build(self, shape: ModelShape) -> nn.Module:
        """A module whose forward takes and gives [num_tokens, hidden_size]."""
        ...


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One layer. `arrangement` says where its norms are:

    "pre": x + attn(norm(x)), then x + mlp(norm(x)), as most
    "post": norm(x + attn(x)), then norm(x + mlp(x))
    "output": x + norm(attn(x)), then x + norm(mlp(x))
    "sandwich": x + norm(attn(norm(x))), then x + norm(mlp(norm(x)))
    "parallel": x + attn(h) + mlp(h) with h = norm(x)
    "parallel, two norms": x + attn(norm(x)) + mlp(norm(x))
    """

    attention: MixerSpec
    mlp: FeedForwardSpec
    norm: NormSpec
    arrangement: Literal["pre", "post", "output", "sandwich", "parallel", "parallel, two norms"] = "pre"
    residual_multiplier: float = 1.0  # of what attention and mlp add; for "pre" only

    def build(self, shape: ModelShape) -> nn.Module:
        """A module whose forward takes [num_tokens, hidden_size] and a `Rotation`, and gives the former."""
        match self.arrangement:
            case "pre":
                plain = self.residual_multiplier == 1.0
                return PreNormLayer(self, shape) if plain else ScaledLayer(self, shape)
            case "post":
                return PostNormLayer(self, shape)
            case "output":
                return OutputNormLayer(self, shape)
            case "sandwich":
                return SandwichLayer(self, shape)
            case "parallel":
                return ParallelLayer(self, shape)
            case "parallel, two norms":
                return TwoNormsParallelLayer(self, shape)


class _Layer(nn.Module):
    """Attention, feed-forward and the norms of the given names."""

    def __init__(self, spec: LayerSpec, shape: ModelShape, *norms: str) -> None:
        super().__init__()
        self.self_attn = spec.attention.build(shape)
        self.mlp = spec.mlp.build(shape)
        for name in norms:
            self.add_module(name, spec.norm.build(shape.hidden_size))


class PreNormLayer(_Layer):
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module

    def __init__(self, spec: LayerSpec, shape: ModelShape) -> None:
        super().__init__(spec, shape, "input_layernorm", "post_attention_layernorm")

    def forward(self, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        attended = self.self_attn(self.input_layernorm(x), rotation)
        x, normed = add_and_norm(x, attended, self.post_attention_layernorm)
        out: torch.Tensor = x + self.mlp(normed)
        return out


class ScaledLayer(PreNormLayer):
    """Both additions are multiplied: Granite's."""

    def __init__(self, spec: LayerSpec, shape: ModelShape) -> None:
        super().__init__(spec, shape)
        self.multiplier = spec.residual_multiplier

    def forward(self, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation) * self.multiplier
        out: torch.Tensor = x + self.mlp(self.post_attention_layernorm(x)) * self.multiplier
        return out


class PostNormLayer(PreNormLayer):
    """The same norms after the additions: OPT-350M's."""

    def forward(self, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        x = self.input_layernorm(x + self.self_attn(x, rotation))
        out: torch.Tensor = self.post_attention_layernorm(x + self.mlp(x))
        return out


class OutputNormLayer(_Layer):
    post_attention_layernorm: nn.Module
    post_feedforward_layernorm: nn.Module

    def __init__(self, spec: LayerSpec, shape: ModelShape) -> None:
        super().__init__(spec, shape, "post_attention_layernorm", "post_feedforward_layernorm")

    def forward(self, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(x, rotation))
        out: torch.Tensor = x + self.post_feedforward_layernorm(self.mlp(x))
        return out


class SandwichLayer(_Layer):
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module
    pre_feedforward_layernorm: nn.Module
    post_feedforward_layernorm: nn.Module

    def __init__(self, spec: LayerSpec, shape: ModelShape) -> None:
        feedforward = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
        super().__init__(spec, shape, "input_layernorm", "post_attention_layernorm", *feedforward)

    def forward(self, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), rotation))
        out: torch.Tensor = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return out


class ParallelLayer(_Layer):
    input_layernorm: nn.Module

    def __init__(self, spec: LayerSpec, shape: ModelShape) -> None:
        super().__init__(spec, shape, "input_layernorm")

    def forward(self, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        normed = self.input_layernorm(x)
        out: torch.Tensor = x + self.self_attn(normed, rotation) + self.mlp(normed)
        return out


class TwoNormsParallelLayer(PreNormLayer):
    def forward(self, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        attended = self.self_attn(self.input_layernorm(x), rotation)
        out: torch.Tensor = x + attended + self.mlp(self.post_attention_layernorm(x))
        return out
