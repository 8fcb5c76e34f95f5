"""Qwen2-VL's encoder of images: patches that are rotated by row and column, and merged into squares behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import nn
from torch.nn import functional

from quire_engine.core.merged_patches import MergedCount
from quire_engine.layers.activation import ACTIVATIONS
from quire_engine.layers.linear import Linear
from quire_engine.layers.norm import LayerNorm
from quire_engine.layers.rotary import rotate
from quire_engine.models.language_model import ImageInputs
from quire_engine.models.vision import ImageEmbedding, VisionSpec

_EPS = 1e-6
_USUAL_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
_MOST_PIXELS = 1 << 25


@dataclass(frozen=True, kw_only=True)
class Qwen2Vision(VisionSpec):
    """The sizes of the encoder, and which images it is given."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    patch_size: int
    merge_size: int  # patches along each side of a square
    frames: int  # a patch has as many, all of one image
    channels: int = 3
    activation: str = "quick_gelu"
    rope_theta: float = 10000.0
    min_pixels: int = _USUAL_SIZE["shortest_edge"]
    max_pixels: int = _USUAL_SIZE["longest_edge"]

    def prepared_by(self, settings: Mapping[str, object]) -> Self:
        for name, only in (
            ("patch_size", self.patch_size),
            ("merge_size", self.merge_size),
            ("temporal_patch_size", self.frames),
            ("do_resize", True),
        ):
            if settings.get(name, only) != only:
                raise ValueError(f"{name} of the image processor is {settings[name]!r} and config.json asks for {only}")
        size = settings.get("size") or _USUAL_SIZE
        if not isinstance(size, dict):
            raise ValueError(f"size of the image processor is {size!r}: it must be an object")
        least, most = (
            size.get(edge) if settings.get(name) is None else settings[name]
            for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))
        )
        if not isinstance(least, int) or not isinstance(most, int) or not 0 < least <= most <= _MOST_PIXELS:
            raise ValueError(
                f"min_pixels and max_pixels of the image processor are {least!r} and {most!r}: they must be whole "
                f"numbers above 0, the first no more than the second, and that at most {_MOST_PIXELS}"
            )
        return replace(self, min_pixels=least, max_pixels=most)

    @property
    def tunable(self) -> Mapping[str, int]:
        return {"min_pixels": _MOST_PIXELS, "max_pixels": _MOST_PIXELS}

    @property
    def options(self) -> Mapping[str, object]:
        return {"size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}}

    @property
    def count(self) -> MergedCount:
        return MergedCount(self.patch_size * self.merge_size, self.min_pixels, self.max_pixels)

    @property
    def patch_elements(self) -> int:
        """Values of a patch, in all its frames."""
        return self.channels * self.frames * self.patch_size**2

    @property
    def num_elements(self) -> int:
        layer = 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size
        return self.num_layers * layer + self.hidden_size * self.patch_elements

    @property
    def usual_processor(self) -> tuple[str, Mapping[str, object]]:
        return "Qwen2VLImageProcessorPil", {
            "patch_size": self.patch_size,
            "merge_size": self.merge_size,
            "temporal_patch_size": self.frames,
        }

    def inputs(self, width: int, height: int) -> Mapping[str, tuple[int, ...]]:
        patches = self.count.of(width, height) * self.merge_size**2
        return {"pixel_values": (patches, self.patch_elements), "image_grid_thw": (1, 3)}

    def build(self, hidden_size: int) -> ImageEmbedding:
        return Qwen2ImageEmbedding(self, hidden_size)


class Qwen2ImageEmbedding(ImageEmbedding):
    """Wang et al., 2024, Qwen2-VL, section 2.1. Submodules carry the names that its checkpoints have."""

    def __init__(self, spec: Qwen2Vision, hidden_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.patch_embed = _Patches(spec)
        self.blocks = nn.ModuleList(_Block(spec) for _ in range(spec.num_layers))
        self.merger = _Merger(spec, hidden_size)

    def forward(self, inputs: ImageInputs) -> torch.Tensor:
        # Square by square, and line by line within each.
        _, rows, columns = inputs["image_grid_thw"][0].tolist()
        x = self.patch_embed(inputs["pixel_values"])
        rotation = self._rotation(rows, columns, x.device)
        for block in self.blocks:
            x = block(x, *rotation)
        out: torch.Tensor = self.merger(x)
        return out

    def _rotation(self, rows: int, columns: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the patches, each [patches, 1, head_dim / 2] float32: half by row, half by column."""
        merge, each = self.spec.merge_size, self.spec.hidden_size // self.spec.num_heads // 2
        exponents = torch.arange(0, each, 2, dtype=torch.float32, device=device) / each
        frequencies = 1.0 / self.spec.rope_theta**exponents
        numbers = torch.arange(rows * columns, device=device).view(rows // merge, merge, columns // merge, merge)
        places = numbers.transpose(1, 2).flatten()
        angles = torch.stack((places // columns, places % columns), dim=-1).float()[..., None] * frequencies
        flat = angles.flatten(1)[:, None]
        return flat.cos(), flat.sin()


class _Patches(nn.Module):
    def __init__(self, spec: Qwen2Vision) -> None:
        super().__init__()
        size = (spec.frames, spec.patch_size, spec.patch_size)
        self.proj = nn.Conv3d(spec.channels, spec.hidden_size, size, size, bias=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[patches, channels x frames x patch_size^2] -> [patches, hidden_size]."""
        return functional.linear(pixels, self.proj.weight.flatten(1))


class _Block(nn.Module):
    """Attention and an MLP, with a norm before each."""

    def __init__(self, spec: Qwen2Vision) -> None:
        super().__init__()
        size = spec.hidden_size
        self.norm1, self.norm2 = LayerNorm(size, _EPS), LayerNorm(size, _EPS)
        self.attn = _Attention(size, spec.num_heads)
        self.mlp = nn.ModuleDict(
            {
                "fc1": Linear(size, spec.intermediate_size, bias=True),
                "fc2": Linear(spec.intermediate_size, size, bias=True),
            }
        )
        self.activation = ACTIVATIONS[spec.activation]

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), cos, sin)
        out: torch.Tensor = x + self.mlp["fc2"](self.activation(self.mlp["fc1"](self.norm2(x))))
        return out


class _Attention(nn.Module):
    """Of all patches of an image to each other."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = Linear(size, 3 * size, bias=True), Linear(size, size, bias=True)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        q, k, v = torch.unflatten(self.qkv(x), -1, (3, self.num_heads, -1)).unbind(1)
        q, k = (rotate(part.float(), cos, sin).to(v.dtype) for part in (q, k))
        q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
        attended = functional.scaled_dot_product_attention(q, k, v)[0]
        out: torch.Tensor = self.proj(attended.transpose(0, 1).flatten(1))
        return out


class _Merger(nn.Module):
    """The patches of a square side by side, and two linears."""

    def __init__(self, spec: Qwen2Vision, hidden_size: int) -> None:
        super().__init__()
        width = spec.hidden_size * spec.merge_size**2
        self.ln_q = LayerNorm(spec.hidden_size, _EPS)
        self.mlp = nn.ModuleDict({"0": Linear(width, width, bias=True), "2": Linear(width, hidden_size, bias=True)})
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[patches, size] -> [squares, hidden_size]."""
        squares = self.ln_q(x).view(-1, self.width)
        out: torch.Tensor = self.mlp["2"](functional.gelu(self.mlp["0"](squares)))
        return out
