"""LLaVA's encoder of images: CLIP's, and two linears behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from quire_engine.core.images import FixedCount, ImageCount
from quire_engine.layers.activation import ACTIVATIONS
from quire_engine.layers.linear import Linear
from quire_engine.models.clip import ClipSpec, ClipTower
from quire_engine.models.language_model import ImageInputs
from quire_engine.models.vision import ImageEmbedding, VisionSpec


@dataclass(frozen=True, kw_only=True)
class LlavaVision(VisionSpec):
    """The tower, and what is taken of it."""

    tower: ClipSpec
    layers: tuple[int, ...]  # hidden states behind so many layers, side by side
    with_class: bool  # whether the class's hidden state is one of the image's
    activation: str = "gelu"  # of the projector
    bias: bool = True  # of the projector

    @property
    def num_features(self) -> int:
        """Hidden states that are taken of one picture of the tower's size."""
        return self.tower.num_patches + self.with_class

    @property
    def count(self) -> ImageCount:
        return FixedCount(self.num_features)

    @property
    def num_elements(self) -> int:
        return self.tower.num_elements

    @property
    def usual_processor(self) -> tuple[str, Mapping[str, object]]:
        size = self.tower.image_size
        return "CLIPImageProcessorPil", {
            "size": {"shortest_edge": size},
            "crop_size": {"height": size, "width": size},
        }

    def inputs(self, width: int, height: int) -> Mapping[str, tuple[int, ...]]:
        return {"pixel_values": (1, self.tower.channels, self.tower.image_size, self.tower.image_size)}

    def build(self, hidden_size: int) -> ImageEmbedding:
        return LlavaEmbedding(self, hidden_size)


class LlavaEmbedding(ImageEmbedding):
    """Liu et al., 2023, Improved Baselines with Visual Instruction Tuning: a tower and two linears."""

    def __init__(self, spec: LlavaVision, hidden_size: int) -> None:
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

    def forward(self, inputs: ImageInputs) -> torch.Tensor:
        return self.projected(inputs["pixel_values"])[0]

    def projected(self, pixels: torch.Tensor) -> torch.Tensor:
        """[pictures, channels, image_size, image_size] -> [pictures, spec.num_features, hidden_size]."""
        features = torch.cat(self.tower(pixels, self.spec.layers), dim=-1)
        if not self.spec.with_class:
            features = features[:, 1:]
        out: torch.Tensor = self.projector["linear_2"](self.activation(self.projector["linear_1"](features)))
        return out
