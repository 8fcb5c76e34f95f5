"""Normalisation, and how a family's config.json chooses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from quire_engine.distributed.ranks import tensor_ranks
from quire_engine.kernels import cpu
from quire_engine.kernels.choice import by_gpu_kernels
from quire_engine.layers.shard import Shard


class Norm(nn.Module):
    """What all norms have: a `weight` of one value a feature, which leaves them as they are when it is `neutral`."""

    weight: nn.Parameter
    neutral = 1.0

    def __init__(self, eps: float, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape), requires_grad=False)
        self.eps = eps


class RMSNorm(Norm):
    """x / rms(x) * weight over the last dimension, in float32 (Zhang and Sennrich, 2019)."""

    offset = False

    def __init__(self, size: int, eps: float) -> None:
        super().__init__(eps, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> the same shape and dtype."""
        if by_gpu_kernels(x.device):
            from quire_engine.kernels.gpu.norm import rms_norm

            return rms_norm(x, self.weight, self.eps, offset=self.offset)
        library = cpu.library_for(x, self.weight)
        if library is not None:
            return library.rms_norm(x, self.weight, self.eps, offset=self.offset)
        return self.by_torch(x)

    def by_torch(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class OffsetRMSNorm(RMSNorm):
    """RMSNorm with 1 + weight in place of weight, multiplied in float32: Gemma's."""

    neutral = 0.0
    offset = True

    def by_torch(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * (1.0 + self.weight.float())).to(x.dtype)


def add_and_norm(x: torch.Tensor, more: torch.Tensor, norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """x + more, and its norm."""
    if isinstance(norm, RMSNorm) and by_gpu_kernels(x.device):
        from quire_engine.kernels.gpu.norm import add_and_rms_norm

        return add_and_rms_norm(x, more, norm.weight, norm.eps, offset=norm.offset)
    total = x + more
    return total, norm(total)


class LayerNorm(Norm):
    """(x - mean(x)) / std(x) * weight + bias over the last dimension (Ba, Kiros and Hinton, 2016)."""

    def __init__(self, size: int, eps: float, *, bias: bool = True) -> None:
        super().__init__(eps, size)
        self.bias = nn.Parameter(torch.empty(size), requires_grad=False) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class OffsetLayerNorm(LayerNorm):
    """LayerNorm with 1 + weight in place of weight: Nemotron's."""

    neutral = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight + 1.0, self.bias, self.eps)


class PlainLayerNorm(nn.Module):
    """LayerNorm without parameters: OLMo's."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.size, self.eps = (size,), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x.float(), self.size, None, None, self.eps).to(x.dtype)


class AllHeadsRMSNorm(Norm):
    """RMSNorm over all heads together: OLMo-2's. Each rank holds the weights of its heads."""

    def __init__(self, num_heads: int, head_dim: int, eps: float) -> None:
        ranks = tensor_ranks()
        heads = ranks.share(num_heads)
        super().__init__(eps, heads.stop - heads.start, head_dim)
        self.ranks, self.heads, self.whole = ranks, heads, num_heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens, this rank's heads, head_dim] -> the same shape and dtype."""
        wide = x.float()
        # Heads that several ranks hold count as often as all others do, so that the mean stays the mean.
        mean = self.ranks.all_reduce(wide.square().mean((-2, -1), keepdim=True)) / self.ranks.size
        return (self.weight * (wide * torch.rsqrt(mean + self.eps))).to(x.dtype)

    def shards(self, path: str) -> dict[str, Shard]:
        dim = self.weight.shape[1]
        rows = slice(self.heads.start * dim, self.heads.stop * dim)
        return {f"{path}.weight": Shard(self.weight.flatten(), (self.whole * dim,), rows)}


class EachHeadLayerNorm(Norm):
    """LayerNorm of each head with weights of its own. Each rank holds those of its heads.

    They are one tensor [num_heads, head_dim] in a checkpoint (Cohere), or with `apart` one a head (StableLM).
    """

    def __init__(self, num_heads: int, head_dim: int, eps: float, *, apart: bool) -> None:
        heads = tensor_ranks().share(num_heads)
        super().__init__(eps, heads.stop - heads.start, head_dim)
        self.heads, self.whole, self.apart = heads, num_heads, apart

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[num_tokens, this rank's heads, head_dim] -> the same shape and dtype."""
        wide = functional.layer_norm(x.float(), x.shape[-1:], None, None, self.eps)
        return (self.weight * wide).to(x.dtype)

    def shards(self, path: str) -> dict[str, Shard]:
        dim = self.weight.shape[1]
        if not self.apart:
            return {f"{path}.weight": Shard(self.weight, (self.whole, dim), self.heads)}
        heads = range(self.heads.start, self.heads.stop)
        return {f"{path}.norms.{h}.weight": Shard(self.weight[h - self.heads.start], (dim,)) for h in heads}


@dataclass(frozen=True)
class NormSpec:
    """Which norm a family has."""

    kind: Literal["rms", "offset rms", "layer", "offset layer", "layer without bias", "layer without parameters"]
    eps: float

    def build(self, size: int) -> nn.Module:
        match self.kind:
            case "rms":
                return RMSNorm(size, self.eps)
            case "offset rms":
                return OffsetRMSNorm(size, self.eps)
            case "layer" | "layer without bias":
                return LayerNorm(size, self.eps, bias=self.kind == "layer")
            case "offset layer":
                return OffsetLayerNorm(size, self.eps)
            case "layer without parameters":
                return PlainLayerNorm(size, self.eps)


@dataclass(frozen=True)
class HeadNormSpec:
    """How queries and keys are normalised before they are rotated.

    "head": each head alone, by the same `norm`; "all heads": together; "each head": alone, by weights of its own,
    which are one tensor or apart.
    """

    over: Literal["head", "all heads", "each head", "each head, apart"]
    norm: NormSpec

    def build(self, num_heads: int, head_dim: int) -> nn.Module:
        match self.over:
            case "head":
                return self.norm.build(head_dim)
            case "all heads":
                return AllHeadsRMSNorm(num_heads, head_dim, self.norm.eps)
            case "each head" | "each head, apart":
                return EachHeadLayerNorm(num_heads, head_dim, self.norm.eps, apart=self.over != "each head")
