"""How images become hidden states that stand among those of tokens: an encoder, and a projector behind it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from quire_engine.core.images import ImageTokens
from quire_engine.layers.activation import ACTIVATIONS
from quire_engine.layers.linear import Linear
from quire_engine.models.clip import ClipSpec, ClipTower


@dataclass(frozen=True, kw_only=True)
class VisionSpec:
    """The image encoder of a decoder, and what is taken of it."""

    tower: ClipSpec
    layers: tuple[int, ...]  # hidden states behind so many layers, side by side
    with_class: bool  # whether the class's hidden state is one of the image's
    token_id: int  # of the tokens that images stand in for
    activation: str = "gelu"  # of the projector
    bias: bool = True  # of the projector

    @property
    def num_tokens(self) -> int:
        """Tokens that an image stands in for."""
        return self.tower.num_patches + self.with_class

    def in_prompts(self, most: int) -> ImageTokens | None:
        """How images stand in prompts that may have `most`; None where they may have none."""
        return ImageTokens(self.token_id, self.num_tokens, most) if most else None


class ImageEmbedding(nn.Module):
    """LLaVA's (Liu et al., 2023, Improved Baselines with Visual Instruction Tuning): a tower and two linears."""

    def __init__(self, spec: VisionSpec, hidden_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.tower = ClipTower(spec.tower)
        width = spec.tower.hidden_size * len(spec.layers)
        self.projector = nn.ModuleDict(
            {
                "linear_1": Linear(width, hidden_size, bias=spec.bias),
                "linear_2": Linear(hidden_size, hidden_size, bias=spec.bias),
            }
        )
        self.activation = ACTIVATIONS[spec.activation]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[channels, image_size, image_size] -> [spec.num_tokens, hidden_size]."""
        features = torch.cat(self.tower(pixels[None], self.spec.layers), dim=-1)[0]
        if not self.spec.with_class:
            features = features[1:]
        out: torch.Tensor = self.projector["linear_2"](self.activation(self.projector["linear_1"](features)))
        return out
