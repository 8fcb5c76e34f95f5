"""What the engine asks of a model, whoever wrote its code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from quire_engine.attention.paged_attention import PagedAttention
from quire_engine.memory_plan.model_shape import ModelShape

ImageInputs = Mapping[str, torch.Tensor]
"""One image as the checkpoint's image processor gives a batch of one, by its names: pixels, sizes, masks."""


@dataclass(frozen=True, slots=True)
class ImageRows:
    """What stands in for the embeddings of a step's image tokens."""

    rows: torch.Tensor  # [rows] int64: which of the step's tokens
    embedded: torch.Tensor  # [rows, hidden_size]


class LanguageModel(nn.Module):
    """Token ids in, logits out. Called with [num_tokens] token ids and positions, int64, inside a context.

    One that takes images is given `ImageRows` as `images` where a step's tokens stand for parts of them.
    """

    shape: ModelShape
    batches: bool = True  # whether it computes several sequences, or a part of a prompt, in a step

    def embed_image(self, inputs: ImageInputs) -> torch.Tensor:
        """What the image processor made of one image -> [tokens of the image, hidden_size], in the model's dtype."""
        raise NotImplementedError  # of models that take images

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Rows of what the model returned [rows, hidden_size] -> [rows, vocab_size], float32 or what the head makes."""
        raise NotImplementedError  # every model has its own

    def attention_layers(self) -> list[PagedAttention]:
        """The layers that need a part of the paged cache."""
        return [module for module in self.modules() if isinstance(module, PagedAttention)]
