"""Norms over heads that ranks share."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch.nn.functional import layer_norm

from quire_engine.distributed.ranks import TensorRanks, build_for
from quire_engine.layers.norm import HeadNormSpec, NormSpec

HEADS, HEAD_DIM, EPS = 4, 6, 1e-5


@dataclass(frozen=True)
class Together(TensorRanks):
    """Ranks one after the other: each first leaves its share of a sum, then finds the sum of all."""

    shares: list[torch.Tensor] = field(default_factory=list)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        self.shares.append(x)
        return torch.stack(self.shares[-self.size :]).sum(0)


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("over", ["all heads", "each head", "each head, apart"])
def test_ranks_norm_their_heads_as_one_alone_norms_all(over: str, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, HEADS, HEAD_DIM, generator=generator)
    weight = torch.randn(HEADS, HEAD_DIM, generator=generator)
    spec = HeadNormSpec(over, NormSpec("layer" if "each" in over else "rms", EPS))  # type: ignore[arg-type]  # one of three
    if over == "all heads":
        expected = weight * x * torch.rsqrt(x.square().mean((1, 2), keepdim=True) + EPS)
    else:
        expected = weight * layer_norm(x, (HEAD_DIM,), eps=EPS)
    shares: list[torch.Tensor] = []
    norms = []
    for rank in range(size):
        with build_for(Together(rank, size, shares=shares)):
            norm = spec.build(HEADS, HEAD_DIM)
        for name, shard in norm.shards("norm").items():  # type: ignore[operator]  # only a module to mypy
            whole = weight.flatten() if shard.whole == (HEADS * HEAD_DIM,) else weight
            whole = whole[int(name.split(".")[2])] if "norms" in name else whole
            assert shard.whole == tuple(whole.shape)
            shard.target.copy_(whole[shard.rows])
        norms.append(norm)
    parts = [TensorRanks(rank, size).share(HEADS) for rank in range(size)]
    for norm, heads in zip(norms, parts, strict=True):
        norm(x[:, heads])  # leaves its share
    for norm, heads in zip(norms, parts, strict=True):
        torch.testing.assert_close(norm(x[:, heads]), expected[:, heads])
