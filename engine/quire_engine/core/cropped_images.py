"""Images that are enlarged to fill a grid of square crops, of the closest shape: how Phi-4 looks at them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

_LEAST_SIDE = 10  # pixels of an image that is enlarged as far as the grid lets it


@dataclass(frozen=True, slots=True)
class CropLayout:
    """How an image lies in its grid: at the top left, and what it leaves of the last crops is padding."""

    columns: int
    rows: int
    width: int  # pixels of the image as it lies there
    height: int
    filled_columns: int  # patches that hold a part of it, of all in a row of crops
    filled_rows: int


class CroppedCount(msgspec.Struct, frozen=True, tag=True):
    """A token for each four patches that hold a part of the image, one at the end of each line of those, as much for
    the whole image in one crop, and one between the two.
    """

    size: int  # pixels of a crop's side
    patch_size: int  # pixels of a patch's side
    most: int  # crops of an image

    def of(self, width: int, height: int) -> int:
        """Tokens of an image of `width` x `height` pixels. Raises `ValueError` for one that is far too narrow."""
        layout = self.layout(width, height)
        whole = self.size // self.patch_size // 2
        lines = -(-layout.filled_rows // 2)
        return lines * (-(-layout.filled_columns // 2) + 1) + 1 + whole * (whole + 1)

    def layout(self, width: int, height: int) -> CropLayout:
        """How an image lies in its crops. Raises as `of`."""
        columns, rows = math.ceil(width / self.size), math.ceil(height / self.size)
        if columns * rows > self.most:
            columns, rows = self._closest(width, height)
        wide, high = self.size * columns, self.size * rows
        by_width, by_height = wide / width, high / height
        if by_width < by_height:
            own_width, own_height = wide, int(height * by_width)
        else:
            own_width, own_height = int(width * by_height), high
        if min(own_width, own_height) < _LEAST_SIDE:
            raise ValueError(f"the image has {width} x {height} pixels: one side is too short for the other")
        side = self.size // self.patch_size
        return CropLayout(
            columns,
            rows,
            own_width,
            own_height,
            side * columns - (wide - own_width) // self.patch_size,
            side * rows - (high - own_height) // self.patch_size,
        )

    def _closest(self, width: int, height: int) -> tuple[int, int]:
        """The grid of at most `most` crops whose shape is closest, of alike ones the last that the image fills half."""
        aspect, area = width / height, width * height
        best, least = (1, 1), math.inf
        for columns, rows in _grids(self.most):
            difference = abs(aspect - columns / rows)
            if difference < least:
                best, least = (columns, rows), difference
            elif difference == least and area > 0.5 * self.size * self.size * columns * rows:
                best = (columns, rows)
        return best


def _grids(most: int) -> list[tuple[int, int]]:
    """All grids of at most `most` crops, the smaller first, and those of as many crops as transformers has them."""
    grids = {
        (columns, rows)
        for count in range(1, most + 1)
        for columns in range(1, count + 1)
        for rows in range(1, count + 1)
        if columns * rows <= most
    }
    return sorted(grids, key=lambda grid: grid[0] * grid[1])
