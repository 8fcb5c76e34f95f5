"""What the engine asks of a model, whoever wrote its code."""

from __future__ import annotations

import torch
from torch import nn

from quire_engine.attention.paged_attention import PagedAttention
from quire_engine.memory_plan.model_shape import ModelShape


class LanguageModel(nn.Module):
    """Token ids in, logits out. Called with [num_tokens] token ids and positions, int64, inside a context."""

    shape: ModelShape
    batches: bool = True  # whether it computes several sequences, or a part of a prompt, in a step

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Rows of what the model returned [rows, hidden_size] -> [rows, vocab_size] float32."""
        raise NotImplementedError

    def attention_layers(self) -> list[PagedAttention]:
        """The layers that need a part of the paged cache."""
        return [module for module in self.modules() if isinstance(module, PagedAttention)]
