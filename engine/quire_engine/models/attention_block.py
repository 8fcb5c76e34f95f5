"""Self-attention with a key and value for each group of heads, as most families have it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from quire_engine.attention.paged_attention import PagedAttention
from quire_engine.attention.scores import Alibi, alibi_slopes
from quire_engine.attention.whole_attention import WholeAttention
from quire_engine.distributed.ranks import tensor_ranks
from quire_engine.layers.linear import ColumnLinear, RowLinear, Rows
from quire_engine.layers.norm import HeadNormSpec
from quire_engine.layers.rotary import RopeSettings, rotate, rotate_first, rotate_first_neighbours, rotate_neighbours
from quire_engine.memory_plan.model_shape import ModelShape


@dataclass(frozen=True)
class AlibiSpec:
    """Scores fall with distance by `scale` x the slope of the head, rounded to `dtype` with the position.

    `slopes` are the heads', in place of the usual ones.
    """

    scale: float = 1.0
    dtype: torch.dtype = torch.float32
    slopes: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """What sets the attention of a family, or of some of its layers, apart."""

    rope: RopeSettings | None = None
    causal: bool = True  # else each token sees the whole prompt, and nothing is cached
    window: int | None = None
    scale: float | None = None  # of the scores; 1 / sqrt(head_dim) unless given
    softcap: float | None = None
    alibi: AlibiSpec | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: HeadNormSpec | None = None
    clip: float | None = None  # queries, keys and values are cut off at -clip and clip

    def build(self, shape: ModelShape) -> nn.Module:
        return Attention(self, shape)


class Attention(nn.Module):
    def __init__(self, spec: AttentionSpec, shape: ModelShape) -> None:
        super().__init__()
        head_dim = shape.head_dim
        self.head_dim = head_dim
        heads, kv_heads = Rows(shape.num_heads, head_dim), Rows(shape.num_kv_heads, head_dim)
        parts = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
        self.qkv_proj = ColumnLinear(shape.hidden_size, parts, bias=spec.qkv_bias)
        self.o_proj = RowLinear(heads, shape.hidden_size, bias=spec.output_bias)
        self.clip = spec.clip
        self.q_norm = spec.qk_norm.build(shape.num_heads, head_dim) if spec.qk_norm is not None else None
        self.k_norm = spec.qk_norm.build(shape.num_kv_heads, head_dim) if spec.qk_norm is not None else None
        if spec.rope is not None:
            by_halves, by_neighbours = rotate, rotate_neighbours
            if spec.rope.dim < head_dim:
                by_halves, by_neighbours = rotate_first, rotate_first_neighbours
            self.by_neighbours = spec.rope.interleaved
            self.rotate = by_neighbours if self.by_neighbours else by_halves
        if not spec.causal:
            self.attend: nn.Module = WholeAttention(head_dim, scale=spec.scale)
            return
        ranks = tensor_ranks()
        own, own_kv = ranks.share(shape.num_heads), ranks.share(shape.num_kv_heads)
        alibi = None
        if spec.alibi is not None:
            given = spec.alibi.slopes
            slopes = alibi_slopes(shape.num_heads) if given is None else torch.tensor(given, dtype=torch.float32)
            alibi = Alibi(slopes[own].to(spec.alibi.dtype), spec.alibi.scale)
        self.attend = PagedAttention(
            own.stop - own.start,
            own_kv.stop - own_kv.start,
            head_dim,
            window=spec.window,
            scale=spec.scale,
            softcap=spec.softcap,
            alibi=alibi,
        )

    def forward(self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """[num_tokens, hidden_size] -> the same. `rotation` is what its rotary embedding gives, if it has one."""
        qkv = self.qkv_proj(x)
        if self.clip is not None:
            qkv = qkv.clamp(-self.clip, self.clip)
        q, k, v = (torch.unflatten(part, -1, (-1, self.head_dim)) for part in self.qkv_proj.split(qkv))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            if isinstance(self.attend, PagedAttention) and self.attend.kernels is not None:
                return self._out(self.attend.rotated(q, k, v, rotation, by_neighbours=self.by_neighbours))
            q, k = self.rotate(q, *rotation), self.rotate(k, *rotation)
        return self._out(self.attend(q, k, v))

    def _out(self, attended: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.o_proj(attended.flatten(-2))
        return out
