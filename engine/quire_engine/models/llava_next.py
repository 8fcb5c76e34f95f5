"""LLaVA-NeXT, or LLaVA 1.6: LLaVA whose images are cut into tiles, as many as their shape asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import nn

from quire_engine.core.tiles import TiledCount
from quire_engine.memory_plan.image_encoders import tile_grids
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.language_model import ImageInputs
from quire_engine.models.llava import llava
from quire_engine.models.llava_vision import LlavaEmbedding, LlavaVision
from quire_engine.models.settings import Config
from quire_engine.models.vision import ImageEmbedding


def llava_next(config: Config) -> DecoderSpec:
    """As `llava`."""
    spec = llava(config)
    plain = spec.vision
    assert isinstance(plain, LlavaVision)  # it is LLaVA's
    if plain.with_class:
        raise ValueError(
            "config.json: vision_feature_select_strategy is 'full': only 'default' is supported where images are tiles"
        )
    own = {field.name: getattr(plain, field.name) for field in fields(plain)}
    return replace(spec, vision=TiledVision(**own, grids=tile_grids(config, plain.tower.image_size)))


@dataclass(frozen=True, kw_only=True)
class TiledVision(LlavaVision):
    """LLaVA's tower, that sees an image whole and in tiles."""

    grids: tuple[tuple[int, int], ...]  # tiles of a column and of a row, which an image may be cut into

    @property
    def count(self) -> TiledCount:
        return TiledCount(self.tower.image_size, self.tower.image_size // self.tower.patch_size, self.grids)

    @property
    def usual_processor(self) -> tuple[str, Mapping[str, object]]:
        _, settings = super().usual_processor
        return "LlavaNextImageProcessorPil", settings

    @property
    def options(self) -> Mapping[str, object]:
        tile = self.tower.image_size
        return {"image_grid_pinpoints": [[rows * tile, columns * tile] for rows, columns in self.grids]}

    def inputs(self, width: int, height: int) -> Mapping[str, tuple[int, ...]]:
        rows, columns = self.count.grid(width, height)
        size = self.tower.image_size
        return {"pixel_values": (1, 1 + rows * columns, self.tower.channels, size, size), "image_sizes": (1, 2)}

    def build(self, hidden_size: int) -> ImageEmbedding:
        return TiledEmbedding(self, hidden_size)


class TiledEmbedding(LlavaEmbedding):
    """The order of an image's tokens is that of `TiledCount`."""

    def __init__(self, spec: TiledVision, hidden_size: int) -> None:
        super().__init__(spec, hidden_size)
        self.count = spec.count
        self.newline = nn.Parameter(torch.empty(hidden_size), requires_grad=False)

    def forward(self, inputs: ImageInputs) -> torch.Tensor:
        height, width = inputs["image_sizes"][0].tolist()
        whole, *tiles = self.projected(inputs["pixel_values"][0])
        rows, columns = self.count.grid(width, height)
        side = self.count.side
        patches = torch.stack(tiles).view(rows, columns, side, side, -1)
        patches = patches.transpose(1, 2).reshape(rows * side, columns * side, -1)
        top, height, left, width = self.count.seen(width, height)
        seen = patches[top : top + height, left : left + width]
        ends = self.newline.expand(height, 1, -1)
        return torch.cat([whole, torch.cat([seen, ends], dim=1).flatten(0, 1)])
