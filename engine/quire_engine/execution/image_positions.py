"""Where tokens stand for models that rotate them by time, height and width (Wang et al., 2024, Qwen2-VL, 2.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quire_engine.core.images import PromptImage
from quire_engine.core.merged_patches import MergedCount

AXES = 3


class ImagePositions:
    """The positions of one sequence with images.

    Those of a text are the same on all axes. An image's tokens have the time at which it begins, and from there on
    their row and column; the text behind it goes on as if the image were as long as its longer side.
    """

    def __init__(self, images: Sequence[PromptImage], count: MergedCount) -> None:
        """`images` in the order of their tokens."""
        # Of each image the first and the last token, its position, its columns, and how far what follows is shifted.
        self._spans: list[tuple[int, int, int, int, int]] = []
        shift = 0
        for image in images:
            rows, columns = count.grid(image.width, image.height)
            position = image.start + shift
            shift += max(rows, columns) - image.num_tokens
            self._spans.append((image.start, image.end, position, columns, shift))
        self.shift = shift
        """How far the positions of what follows the last image are from its places in the prompt."""

        self.end = images[-1].end if images else 0
        """Behind the last image."""

    def of(self, start: int, end: int) -> np.ndarray:
        """Of the tokens from `start` to `end`, [3, end - start] int64."""
        result = np.broadcast_to(np.arange(start, end), (AXES, end - start)).copy()
        for first, last, position, columns, shift in self._spans:
            a, b = max(first, start), min(last, end)
            if a < b:
                within = np.arange(a - first, b - first)
                result[:, a - start : b - start] = position + np.stack(
                    (0 * within, within // columns, within % columns)
                )
            behind = max(last, start)
            if behind < end:
                result[:, behind - start :] = np.arange(behind, end) + shift
        return result
