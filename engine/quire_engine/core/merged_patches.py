"""Images whose patches become tokens a square of them at a time, in a grid of the image's own shape: Qwen2-VL's."""

from __future__ import annotations

import math

import msgspec

_LONGEST_TO_SHORTEST = 200


class MergedCount(msgspec.Struct, frozen=True, tag=True):
    """A token for each square of patches, of an image that was resized to whole squares and between two areas."""

    square: int  # pixels of a square's side
    min_pixels: int
    max_pixels: int

    def of(self, width: int, height: int) -> int:
        """Tokens of an image of `width` x `height` pixels. Raises `ValueError` for one that is far too narrow."""
        rows, columns = self.grid(width, height)
        return rows * columns

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of squares. Raises as `of`."""
        if max(width, height) > _LONGEST_TO_SHORTEST * min(width, height):
            raise ValueError(
                f"the image has {width} x {height} pixels: one side may be at most {_LONGEST_TO_SHORTEST} times as "
                "long as the other"
            )
        rows, columns = round(height / self.square), round(width / self.square)
        if rows * columns * self.square**2 > self.max_pixels:
            scale = math.sqrt(height * width / self.max_pixels)
            rows = max(1, math.floor(height / scale / self.square))
            columns = max(1, math.floor(width / scale / self.square))
        elif rows * columns * self.square**2 < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (height * width))
            rows = math.ceil(height * scale / self.square)
            columns = math.ceil(width * scale / self.square)
        return rows, columns
