"""Phi-4-multimodal's encoder of images: SigLIP's, over the crops of an image and over the whole of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import nn
from torch.nn import functional

from quire_engine.core.cropped_images import CroppedCount
from quire_engine.layers.linear import Linear
from quire_engine.models.language_model import ImageInputs
from quire_engine.models.siglip import SiglipSpec, SiglipTower
from quire_engine.models.vision import ImageEmbedding, VisionSpec

_MOST_CROPS = 256


@dataclass(frozen=True, kw_only=True)
class Phi4Vision(VisionSpec):
    """The tower, and what is taken of it."""

    tower: SiglipSpec
    layer: int  # hidden states behind so many layers
    most_crops: int = 36

    def prepared_by(self, settings: Mapping[str, object]) -> Self:
        size = self.tower.image_size
        for name, only in (("size", {"height": size, "width": size}), ("patch_size", self.tower.patch_size)):
            if settings.get(name, only) != only:
                raise ValueError(f"{name} of the image processor is {settings[name]!r} and config.json asks for {only}")
        most = settings.get("dynamic_hd", self.most_crops)
        if not isinstance(most, int) or not 1 <= most <= _MOST_CROPS:
            raise ValueError(f"dynamic_hd of the image processor is {most!r}: it must be between 1 and {_MOST_CROPS}")
        return replace(self, most_crops=most)

    @property
    def tunable(self) -> Mapping[str, int]:
        return {"dynamic_hd": _MOST_CROPS}

    @property
    def count(self) -> CroppedCount:
        return CroppedCount(self.tower.image_size, self.tower.patch_size, self.most_crops)

    @property
    def num_elements(self) -> int:
        return self.tower.num_elements

    @property
    def usual_processor(self) -> tuple[str, Mapping[str, object]]:
        size = self.tower.image_size
        settings = {"size": {"height": size, "width": size}, "patch_size": self.tower.patch_size}
        return "Phi4MultimodalImageProcessor", settings

    def inputs(self, width: int, height: int) -> Mapping[str, tuple[int, ...]]:
        layout, size, side = self.count.layout(width, height), self.tower.image_size, self.tower.side
        pictures = 1 + layout.columns * layout.rows
        return {
            "image_pixel_values": (1, pictures, self.tower.channels, size, size),
            "image_sizes": (1, 2),
            "image_attention_mask": (1, pictures, side, side),
        }

    def build(self, hidden_size: int) -> ImageEmbedding:
        return Phi4ImageEmbedding(self, hidden_size)


class Phi4ImageEmbedding(ImageEmbedding):
    """Abouelenin et al., 2025, Phi-4-Mini, section 2.2.1: mean features of 2 x 2 patches, projected."""

    def __init__(self, spec: Phi4Vision, hidden_size: int) -> None:
        super().__init__()
        self.spec = spec
        width = spec.tower.hidden_size
        self.tower = SiglipTower(spec.tower)
        self.projection_up = Linear(width, hidden_size, bias=True)
        self.projection_down = Linear(hidden_size, hidden_size, bias=True)
        self.line_end = nn.Parameter(torch.empty(1, 1, 1, width), requires_grad=False)
        self.between = nn.Parameter(torch.empty(1, 1, width), requires_grad=False)

    def forward(self, inputs: ImageInputs) -> torch.Tensor:
        # A picture of the whole image, then its crops, line by line.
        pixels, filled = inputs["image_pixel_values"][0], inputs["image_attention_mask"][0] > 0
        size = self.spec.tower.image_size
        rows, columns = (int(length) // size for length in inputs["image_sizes"][0])
        # One after the other: the scores of a picture take a hundred megabytes, and there may be dozens.
        features = torch.cat([self._features(pixels[i : i + 1], filled[i : i + 1]) for i in range(len(pixels))])
        whole, crops = features[0], _joined(features[1:], rows, columns)
        seen = _joined(filled[1:, ::2, ::2, None], rows, columns)[..., 0]
        crops = crops[: int(seen[:, 0].sum()), : int(seen[0].sum())]
        lines = torch.cat([self._lines(crops), self.between[0], self._lines(whole)])
        out: torch.Tensor = self.projection_down(functional.gelu(self.projection_up(lines)))
        return out

    def _features(self, pixels: torch.Tensor, filled: torch.Tensor) -> torch.Tensor:
        """[1, channels, image_size, image_size] and [1, side, side] -> [1, side / 2, side / 2, width]."""
        behind = self.tower(pixels, filled, self.spec.layer).transpose(1, 2).unflatten(-1, filled.shape[1:])
        return functional.avg_pool2d(behind, 2).permute(0, 2, 3, 1)

    def _lines(self, features: torch.Tensor) -> torch.Tensor:
        """[lines, length, width] -> [lines x (length + 1), width]: each line with its end."""
        ends = self.line_end[0].expand(len(features), 1, -1)
        return torch.cat([features, ends], dim=1).flatten(0, 1)


def _joined(crops: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """[rows x columns, side, side, width] -> [rows x side, columns x side, width]."""
    return torch.unflatten(crops, 0, (rows, columns)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
