"""The decoder that the Llama-shaped families share. A family is a `DecoderSpec`: see its own file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import silu

from quire_engine.attention.paged_attention import PagedAttention
from quire_engine.distributed.ranks import tensor_ranks
from quire_engine.layers.embedding import Embedding
from quire_engine.layers.linear import ColumnLinear, RowLinear, Rows
from quire_engine.layers.norm import RMSNorm
from quire_engine.layers.rotary import RopeSettings, RotaryEmbedding, rotate
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.models.language_model import LanguageModel
from quire_engine.models.naming import LLAMA_NAMES, Naming


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """The sizes of a decoder and what sets its family apart."""

    shape: ModelShape
    rope: RopeSettings
    norm_eps: float
    windows: tuple[int | None, ...]  # the sliding window of each layer
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    naming: Naming = LLAMA_NAMES

    @property
    def longest(self) -> int:
        """Positions that the model covers."""
        return self.rope.longest()

    @staticmethod
    def from_config(config: Mapping[str, object], *, windows: tuple[int | None, ...] | None = None) -> DecoderSpec:
        """What all families read alike. Raises `ValueError` that names what is not supported."""
        shape = ModelShape.from_config(config)
        activation = config.get("hidden_act", "silu")
        if activation != "silu":
            raise ValueError(f"config.json: hidden_act is {activation!r}: only silu is supported")
        eps = config.get("rms_norm_eps", 1e-6)
        if not isinstance(eps, int | float):
            raise ValueError(f"config.json: rms_norm_eps is {eps!r}: it must be a number")
        return DecoderSpec(
            shape=shape,
            rope=RopeSettings.from_config(config, shape.max_position_embeddings),
            norm_eps=float(eps),
            windows=windows or (None,) * shape.num_layers,
        )


class Attention(nn.Module):
    def __init__(self, spec: DecoderSpec, window: int | None) -> None:
        super().__init__()
        shape, head_dim = spec.shape, spec.shape.head_dim
        self.head_dim = head_dim
        heads, kv_heads = Rows(shape.num_heads, head_dim), Rows(shape.num_kv_heads, head_dim)
        parts = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
        self.qkv_proj = ColumnLinear(shape.hidden_size, parts, bias=spec.qkv_bias)
        self.o_proj = RowLinear(heads, shape.hidden_size, bias=spec.output_bias)
        self.q_norm = RMSNorm(head_dim, spec.norm_eps) if spec.qk_norm else None
        self.k_norm = RMSNorm(head_dim, spec.norm_eps) if spec.qk_norm else None
        ranks = tensor_ranks()
        own, own_kv = ranks.share(shape.num_heads), ranks.share(shape.num_kv_heads)
        self.attend = PagedAttention(own.stop - own.start, own_kv.stop - own_kv.start, head_dim, window=window)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        q, k, v = (torch.unflatten(part, -1, (-1, self.head_dim)) for part in self.qkv_proj.split(self.qkv_proj(x)))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        attended = self.attend(rotate(q, cos, sin), rotate(k, cos, sin), v)
        out: torch.Tensor = self.o_proj(attended.flatten(-2))
        return out


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer, "GLU variants improve Transformer")."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        hidden, inner = spec.shape.hidden_size, Rows(spec.shape.intermediate_size)
        self.gate_up_proj = ColumnLinear(hidden, {"gate_proj": inner, "up_proj": inner}, bias=spec.mlp_bias)
        self.down_proj = RowLinear(inner, hidden, bias=spec.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        out: torch.Tensor = self.down_proj(silu(gate) * up)
        return out


class DecoderLayer(nn.Module):
    def __init__(self, spec: DecoderSpec, window: int | None) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.shape.hidden_size, spec.norm_eps)
        self.self_attn = Attention(spec, window)
        self.post_attention_layernorm = RMSNorm(spec.shape.hidden_size, spec.norm_eps)
        self.mlp = GatedMLP(spec)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: torch.Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.embed_tokens = Embedding(spec.shape.vocab_size, spec.shape.hidden_size)
        self.rotary = RotaryEmbedding(spec.shape.head_dim, spec.rope)
        self.layers = nn.ModuleList([DecoderLayer(spec, window) for window in spec.windows])
        self.norm = RMSNorm(spec.shape.hidden_size, spec.norm_eps)

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(token_ids)
        cos, sin = self.rotary(positions, x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        out: torch.Tensor = self.norm(x)
        return out


class CausalLM(LanguageModel):
    """A decoder with its output head. Submodules carry the checkpoint's names."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec, self.shape = spec, spec.shape
        self.model = Decoder(spec)
        tied = spec.shape.tied_embeddings
        self.lm_head = None if tied else Embedding(spec.shape.vocab_size, spec.shape.hidden_size)

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[num_tokens] and [num_tokens] int64 -> hidden states [num_tokens, hidden_size]. Needs a context."""
        out: torch.Tensor = self.model(token_ids, positions)
        return out

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden_size] -> [rows, vocab_size] float32."""
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return head.logits(hidden).float()
