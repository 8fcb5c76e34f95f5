"""CLIP's image encoder (Radford et al., 2021): patches of an image to hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from quire_engine.layers.activation import ACTIVATIONS
from quire_engine.layers.linear import Linear
from quire_engine.layers.norm import LayerNorm


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """The sizes of an encoder, those of images in pixels."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    channels: int = 3
    activation: str = "quick_gelu"
    eps: float = 1e-5

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_elements(self) -> int:
        """Elements of the weight matrices and tables."""
        layer = 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size
        embeddings = self.channels * self.patch_size**2 + 1 + self.num_patches
        return self.num_layers * layer + self.hidden_size * embeddings


class ClipTower(nn.Module):
    """Submodules carry the names that checkpoints of CLIP have, `pre_layrnorm` among them."""

    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        self.embeddings = _Embeddings(spec)
        self.pre_layrnorm = LayerNorm(spec.hidden_size, spec.eps)
        self.encoder = ClipLayers(spec)

    def forward(self, pixels: torch.Tensor, numbers: tuple[int, ...]) -> list[torch.Tensor]:
        """[images, channels, image_size, image_size] -> for each of `numbers` the hidden states
        [images, 1 + num_patches, hidden_size] behind so many layers. The first of them is the class's."""
        x = self.pre_layrnorm(self.embeddings(pixels))
        wanted = {0: x} if 0 in numbers else {}
        for i in range(1, max(numbers) + 1):
            x = self.encoder.layers[i - 1](x)
            if i in numbers:
                wanted[i] = x
        return [wanted[number] for number in numbers]


class _Embeddings(nn.Module):
    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        size = spec.hidden_size
        self.class_embedding = nn.Parameter(torch.empty(size), requires_grad=False)
        self.patch_embedding = nn.Conv2d(spec.channels, size, spec.patch_size, spec.patch_size, bias=False)
        self.position_embedding = nn.Embedding(1 + spec.num_patches, size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class LayerSizes(Protocol):
    """What layers are made by, whichever encoder they are of."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def activation(self) -> str: ...
    @property
    def eps(self) -> float: ...


class ClipLayers(nn.Module):
    def __init__(self, spec: LayerSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(spec) for _ in range(spec.num_layers))


class _Layer(nn.Module):
    """Attention and an MLP, with a norm before each."""

    def __init__(self, spec: LayerSizes) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(spec.hidden_size, spec.eps)
        self.self_attn = _Attention(spec.hidden_size, spec.num_heads)
        self.layer_norm2 = LayerNorm(spec.hidden_size, spec.eps)
        self.mlp = nn.ModuleDict(
            {
                "fc1": Linear(spec.hidden_size, spec.intermediate_size, bias=True),
                "fc2": Linear(spec.intermediate_size, spec.hidden_size, bias=True),
            }
        )
        self.activation = ACTIVATIONS[spec.activation]

    def forward(self, x: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        """[images, patches, hidden_size] -> the same. `seen` [images, 1, 1, patches] bool are those attended to."""
        x = x + self.self_attn(self.layer_norm1(x), seen)
        out: torch.Tensor = x + self.mlp["fc2"](self.activation(self.mlp["fc1"](self.layer_norm2(x))))
        return out


class _Attention(nn.Module):
    """Of all patches to those that are seen: unless said otherwise, to each other."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj = Linear(size, size, bias=True), Linear(size, size, bias=True)
        self.v_proj, self.out_proj = Linear(size, size, bias=True), Linear(size, size, bias=True)

    def forward(self, x: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = functional.scaled_dot_product_attention(q, k, v, seen)
        out: torch.Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out
