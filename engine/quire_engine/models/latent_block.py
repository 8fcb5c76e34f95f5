"""DeepSeek's latent attention: keys and values of all heads are projected from one cached vector a token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from quire_engine.attention.latent_attention import LatentAttention
from quire_engine.distributed.ranks import tensor_ranks
from quire_engine.layers.linear import ColumnLinear, Linear, RowLinear, Rows, Unquantized
from quire_engine.layers.norm import NormSpec
from quire_engine.layers.rotary import RopeSettings, rotate, rotate_neighbours
from quire_engine.memory_plan.model_shape import ModelShape

_NORM = NormSpec("rms", 1e-6)


@dataclass(frozen=True, kw_only=True)
class LatentAttentionSpec:
    """Sizes as DeepSeek-V2 names them (section 2.1); all are of one head, but for the ranks."""

    rope: RopeSettings
    q_rank: int | None  # of the latent queries; None: they are projected at once
    kv_rank: int
    nope_dim: int
    value_dim: int
    scale: float  # of the scores
    bias: bool = False

    @property
    def head_dim(self) -> int:
        """Features of a query, before its first part is turned towards the latent vectors."""
        return self.nope_dim + self.rope.dim

    def build(self, shape: ModelShape) -> nn.Module:
        return LatentAttentionBlock(self, shape)


class LatentAttentionBlock(nn.Module):
    """Projects queries and one latent vector a token; those of keys and values are left to attention."""

    key_projection: torch.Tensor  # [heads of this rank, nope_dim, kv_rank]
    value_projection: torch.Tensor  # [heads of this rank, value_dim, kv_rank]

    def __init__(self, spec: LatentAttentionSpec, shape: ModelShape) -> None:
        super().__init__()
        self.spec = spec
        hidden, heads = shape.hidden_size, shape.num_heads
        queries = Rows(heads, spec.head_dim)
        if spec.q_rank is None:
            self.q_proj = ColumnLinear(hidden, queries)
        else:
            self.q_a_proj = Linear(hidden, spec.q_rank, bias=spec.bias)
            self.q_a_layernorm = _NORM.build(spec.q_rank)
            self.q_b_proj = ColumnLinear(spec.q_rank, queries)
        self.kv_a_proj_with_mqa = Linear(hidden, spec.kv_rank + spec.rope.dim, bias=spec.bias)
        self.kv_a_layernorm = _NORM.build(spec.kv_rank)
        self.kv_b_proj = ColumnLinear(spec.kv_rank, Rows(heads, spec.nope_dim + spec.value_dim))
        self.kv_b_proj.takes_batch = False
        self.o_proj = RowLinear(Rows(heads, spec.value_dim), hidden, bias=spec.bias)
        own = tensor_ranks().share(heads)
        self.rotate = rotate_neighbours if spec.rope.interleaved else rotate
        self.attend = LatentAttention(own.stop - own.start, spec.kv_rank, spec.rope.dim, scale=spec.scale)

    def forward(self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """[num_tokens, hidden_size] -> the same. `rotation` is what its rotary embedding gives."""
        spec = self.spec
        q = self.q_proj(x) if spec.q_rank is None else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q_nope, q_rope = q.view(len(x), -1, spec.head_dim).split([spec.nope_dim, spec.rope.dim], dim=-1)
        queries = torch.cat((q_nope, self.rotate(q_rope, *rotation)), dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([spec.kv_rank, spec.rope.dim], dim=-1)
        k_rope = self.rotate(k_rope[:, None], *rotation)
        vectors = torch.cat((self.kv_a_layernorm(latent)[:, None], k_rope), dim=-1)
        attended = self.attend.over_latents(queries, vectors, self.key_projection, self.value_projection)
        out: torch.Tensor = self.o_proj(attended.flatten(1))
        return out

    def finish(self) -> None:
        """Take the two projections out of `kv_b_proj`, which is not multiplied by itself. A quantized one is undone."""
        spec, layer = self.spec, self.kv_b_proj
        if isinstance(layer.method, Unquantized):
            weight = layer.weight
        else:
            like = self.kv_a_layernorm.weight
            assert isinstance(like, torch.Tensor)
            unit = torch.eye(spec.kv_rank, dtype=like.dtype, device=like.device)
            weight = nn.Parameter(layer(unit).t().contiguous(), requires_grad=False)
            for name in dict(layer.named_parameters(recurse=False)):
                delattr(layer, name)
            layer.method, layer.weight = Unquantized(), weight
        projections = weight.detach().view(-1, spec.nope_dim + spec.value_dim, spec.kv_rank)
        self.key_projection, self.value_projection = torch.split(projections, [spec.nope_dim, spec.value_dim], dim=1)
