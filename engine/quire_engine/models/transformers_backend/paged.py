"""A model of transformers whose attention is Quire's, over the paged cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from quire_engine.attention.paged_attention import PagedAttention
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.models.language_model import LanguageModel
from quire_engine.models.transformers_backend.outputs import HiddenStates

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "quire"
# Tensors that attention may be handed and that say nothing which the batch does not say.
_HARMLESS = ("position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k", "position_embeddings")


class NotPluggableError(ValueError):
    """Why a model's attention cannot be replaced."""


@dataclass(frozen=True)
class AttentionCall:
    """What one attention module hands over: sizes and settings."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None
    scale: float | None
    softcap: float | None


_recorded: dict[nn.Module, AttentionCall] | None = None


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: query [1, num_heads, num_tokens, head_dim], key and value likewise.

    Returns [1, num_tokens, num_heads, head_dim]. Raises `NotPluggableError` for what paged attention does not do.
    """
    if _recorded is not None:
        _check(module, query, key, value, attention_mask, others)
        _recorded[module] = AttentionCall(query.shape[1], key.shape[1], key.shape[3], sliding_window, scaling, softcap)
        # One token sees itself alone, so its value is what it attends to.
        return value.repeat_interleave(query.shape[1] // key.shape[1], dim=1).transpose(1, 2), None
    paged = module.quire_attention
    assert isinstance(paged, PagedAttention)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return paged(q.contiguous(), k, v)[None], None


def _check(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    others: dict[str, Any],
) -> None:
    """Raise `NotPluggableError` for a call that paged attention cannot take."""
    assert _recorded is not None
    if module in _recorded:
        raise NotPluggableError("a layer attends twice in a step")
    if mask is not None:
        raise NotPluggableError("it makes its own attention mask")
    if others.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise NotPluggableError("its attention is not causal")
    extra = [name for name, x in others.items() if isinstance(x, torch.Tensor) and name not in _HARMLESS]
    if extra:
        raise NotPluggableError(f"its attention takes {extra[0]}")
    if key.shape != value.shape or key.shape[3] != query.shape[3] or query.shape[1] % key.shape[1]:
        shapes = [list(x.shape[1:]) for x in (query, key, value)]
        raise NotPluggableError(f"its queries, keys and values have the shapes {shapes}")


@contextmanager
def recording() -> Iterator[dict[nn.Module, AttentionCall]]:
    """Have `attend` note each module's call instead of attending."""
    global _recorded
    calls: dict[nn.Module, AttentionCall] = {}
    _recorded = calls
    try:
        yield calls
    finally:
        _recorded = None


class PagedTransformers(LanguageModel):
    """Runs a batch as one row of tokens; the attention context tells its sequences apart."""

    def __init__(
        self, model: PreTrainedModel, hidden: HiddenStates, shape: ModelShape, calls: dict[nn.Module, AttentionCall]
    ) -> None:
        super().__init__()
        self.model = model
        most = max(calls.values(), key=lambda call: call.num_kv_heads * call.head_dim)
        self.shape = replace(
            shape,
            num_layers=len(calls),
            num_heads=most.num_heads,
            num_kv_heads=most.num_kv_heads,
            head_dim=most.head_dim,
            kv_width=2 * most.head_dim,
        )
        self._hidden = hidden
        for module, call in calls.items():
            module.quire_attention = PagedAttention(
                call.num_heads,
                call.num_kv_heads,
                call.head_dim,
                window=call.window,
                scale=call.scale,
                softcap=call.softcap,
            )

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[num_tokens] and [num_tokens] int64 -> hidden states [num_tokens, hidden_size]. Needs a context."""
        base = self._hidden.base
        output = base(input_ids=token_ids[None], position_ids=positions[None], use_cache=False, return_dict=True)
        return self._hidden.of(output)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden_size] -> [rows, vocab_size] float32."""
        return self._hidden.logits(hidden)
