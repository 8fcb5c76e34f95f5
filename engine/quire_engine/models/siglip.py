"""SigLIP's image encoder (Zhai et al., 2023), for images that fill a part of their square (Dehghani et al., NaViT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from quire_engine.models.clip import ClipLayers


@dataclass(frozen=True, kw_only=True)
class SiglipSpec:
    """The sizes of an encoder, those of images in pixels."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    channels: int = 3
    activation: str = "gelu_pytorch_tanh"
    eps: float = 1e-6

    @property
    def side(self) -> int:
        """Patches along each side of an image."""
        return self.image_size // self.patch_size

    @property
    def num_elements(self) -> int:
        """Elements of the weight matrices and tables."""
        layer = 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size
        return self.num_layers * layer + self.hidden_size * (self.channels * self.patch_size**2 + self.side**2)


class SiglipTower(nn.Module):
    """Submodules carry the names that checkpoints of SigLIP have."""

    def __init__(self, spec: SiglipSpec) -> None:
        super().__init__()
        self.embeddings = _Embeddings(spec)
        self.encoder = ClipLayers(spec)

    def forward(self, pixels: torch.Tensor, filled: torch.Tensor, number: int) -> torch.Tensor:
        """[images, channels, image_size, image_size] and, of its patches, those that hold a part of the image
        [images, side, side] bool -> the hidden states [images, side^2, hidden_size] behind `number` layers.
        """
        x: torch.Tensor = self.embeddings(pixels, filled)
        seen = filled.flatten(1)[:, None, None, :]
        for layer in self.encoder.layers[:number]:
            x = layer(x, seen)
        return x


class _Embeddings(nn.Module):
    def __init__(self, spec: SiglipSpec) -> None:
        super().__init__()
        self.side = spec.side
        self.patch_embedding = nn.Conv2d(spec.channels, spec.hidden_size, spec.patch_size, spec.patch_size)
        self.position_embedding = nn.Embedding(spec.side**2, spec.hidden_size)

    def forward(self, pixels: torch.Tensor, filled: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        rows, columns = self._places(filled[:, :, 0]), self._places(filled[:, 0, :])
        places = (rows[:, :, None] * self.side + columns[:, None, :]).masked_fill(~filled, 0)
        out: torch.Tensor = patches + self.position_embedding(places.flatten(1))
        return out

    def _places(self, filled: torch.Tensor) -> torch.Tensor:
        """The filled patches along one side [images, side], spread over the whole of it: [images, side] int64."""
        bounds = torch.arange(1 / self.side, 1.0, 1 / self.side, device=filled.device, dtype=torch.float32)
        numbers = torch.arange(self.side, device=filled.device, dtype=torch.float32)
        fractions = numbers * (1.0 / filled.sum(dim=1, keepdim=True).float())
        places: torch.Tensor = torch.bucketize(fractions.clamp(max=1.0 - 1e-6), bounds, right=True)
        return places
