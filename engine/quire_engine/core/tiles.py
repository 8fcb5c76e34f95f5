"""An image of any resolution as tiles, as LLaVA-NeXT cuts it (Liu et al., 2024, "LLaVA-NeXT: Improved reasoning, OCR,
and world knowledge").

Its tokens are those of a small picture of the whole, then those of the tiles, row by row, without rows and columns that
are padding alone. One more token ends each row.
"""

from __future__ import annotations

import msgspec


class TiledCount(msgspec.Struct, frozen=True, tag=True):
    """As many tokens as an image's shape asks for."""

    tile: int  # pixels of a side
    side: int  # patches of a tile's side
    grids: tuple[tuple[int, int], ...]  # tiles of a column and of a row, in an image that is cut

    def of(self, width: int, height: int) -> int:
        _, rows, _, columns = self.seen(width, height)
        return self.side**2 + rows * (columns + 1)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Tiles of a column and of a row: of the grids that keep most of the image's pixels the smallest one."""
        pixels = width * height

        def kept(grid: tuple[int, int]) -> int:
            full_height, full_width = grid[0] * self.tile, grid[1] * self.tile
            scale = min(full_width / width, full_height / height)
            return min(int(width * scale) * int(height * scale), pixels)

        # Its waste, of two that keep as much, is the difference that their sizes make.
        return max(self.grids, key=lambda grid: (kept(grid), -grid[0] * grid[1]))

    def seen(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Of the grid's patches, those that are not padding: first row, number of rows, first column, columns."""
        column, row = (tiles * self.side for tiles in self.grid(width, height))
        if width / height > row / column:
            # Rounded before it is cut off: what ought to be a whole number may be just below it.
            above = (column - int(round(height * (row / width), 7))) // 2
            return above, column - 2 * above, 0, row
        before = (row - int(round(width * (column / height), 7))) // 2
        return 0, column, before, row - 2 * before
