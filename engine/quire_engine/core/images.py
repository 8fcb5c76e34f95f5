"""Images of a prompt, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from quire_engine.core.cropped_images import CroppedCount
from quire_engine.core.merged_patches import MergedCount
from quire_engine.core.tiles import TiledCount

TEXT_ALONE = "this model takes text alone"
"""Why images are refused, as a rule."""


@dataclass(frozen=True, slots=True)
class PromptImage:
    """An image file, and the tokens of the prompt that stand for it."""

    data: bytes  # PNG, JPEG, WEBP or GIF; empty where the executor is told of it
    digest: bytes  # of the file: equal ones are taken for equal images
    start: int  # position of its first token
    num_tokens: int
    width: int  # pixels, as it is meant to be seen
    height: int

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class PlainTensor:
    """A tensor as plain values, which cross processes."""

    dtype: str  # by torch's name, as "float32"
    shape: tuple[int, ...]
    data: memoryview  # of bytes, row by row


PreparedImage = dict[str, PlainTensor]
"""One image as the checkpoint's image processor gives a batch of one, by its names: pixels, sizes, masks."""


class FixedCount(msgspec.Struct, frozen=True, tag=True):
    """As many tokens for each image, whatever its size."""

    num_tokens: int

    def of(self, width: int, height: int) -> int:
        return self.num_tokens


ImageCount = FixedCount | TiledCount | CroppedCount | MergedCount
"""How many tokens an image has, by its size. Its `of` raises `ValueError` for a size that the model does not take.

It crosses processes: each kind is a tagged struct of plain values."""


@dataclass(frozen=True)
class ImageTokens:
    """How images stand in the prompts of a model that takes them."""

    token_id: int  # of each token that stands for a part of an image
    count: ImageCount
    most: int  # images in a prompt
    adapted: bool = False  # whether prompts with images are computed with an adapter, and others without
