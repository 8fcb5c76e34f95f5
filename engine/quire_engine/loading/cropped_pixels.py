"""What Phi-4's encoder takes of an image: what transformers' processor makes of it, which needs torchvision."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from PIL import Image
from torch.nn import functional

from quire_engine.core.cropped_images import CroppedCount

_WHITE = 255


class CroppedPixels:
    """Enlarges an image to fill its crops, pads it with white, and makes it small in one more picture."""

    def __init__(self, count: CroppedCount, settings: Mapping[str, object]) -> None:
        """`settings` are the file's of the image processor. Raises `ValueError` for those that are not followed."""
        self._count = count
        self._mean, self._std = _three(settings, "image_mean"), _three(settings, "image_std")
        for name in ("do_rescale", "do_normalize", "do_convert_rgb"):
            if settings.get(name) not in (None, True):
                raise ValueError(f"{name} is {settings[name]!r}: it must be true")
        for name, only in (("rescale_factor", 1 / 255), ("resample", 3)):
            value = settings.get(name)
            if value is not None and not (isinstance(value, int | float) and abs(value - only) < 1e-6):
                raise ValueError(f"{name} is {value!r}: it must be {only}")
        if not bool((self._std > 0).all()):
            raise ValueError(f"image_std is {settings['image_std']!r}: its numbers must be above 0")

    def __call__(self, image: Image.Image, return_tensors: str = "pt") -> dict[str, torch.Tensor]:
        """Pixels [1, 1 + crops, 3, size, size], which patches hold a part of the image [1, 1 + crops, side, side] and
        the sizes of the grid [1, 2], height first. Raises `ValueError` for an image that is far too narrow.
        """
        layout, size = self._count.layout(*image.size), self._count.size
        side = size // self._count.patch_size
        data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        pixels = data.view(1, image.height, image.width, 3).permute(0, 3, 1, 2)
        own = (layout.height, layout.width)
        pixels = functional.interpolate(pixels, own, mode="bilinear", align_corners=False, antialias=True)[0]
        grid = torch.full((3, layout.rows * size, layout.columns * size), _WHITE, dtype=torch.uint8)
        grid[:, : layout.height, : layout.width] = pixels
        values = (grid.float() - self._mean * _WHITE) / (self._std * _WHITE)
        whole = functional.interpolate(values[None], (size, size), mode="bicubic", align_corners=False)
        filled = torch.zeros(1, layout.rows * side, layout.columns * side)
        filled[:, : layout.filled_rows, : layout.filled_columns] = 1
        return {
            "image_pixel_values": torch.cat([whole, _cut(values, size)])[None],
            "image_sizes": torch.tensor([grid.shape[1:]]),
            "image_attention_mask": torch.cat([torch.ones(1, side, side), _cut(filled, side)[:, 0]])[None],
        }


def _cut(grid: torch.Tensor, side: int) -> torch.Tensor:
    """[channels, rows x side, columns x side] -> [rows x columns, channels, side, side]."""
    pieces = torch.unflatten(torch.unflatten(grid, 2, (-1, side)), 1, (-1, side))
    return pieces.permute(1, 3, 0, 2, 4).flatten(0, 1)


def _three(settings: Mapping[str, object], name: str) -> torch.Tensor:
    """A number for each colour, [3, 1, 1]."""
    value = settings.get(name, [0.5, 0.5, 0.5])
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(v, int | float) for v in value):
        raise ValueError(f"{name} is {value!r}: it must be three numbers")
    return torch.tensor(value, dtype=torch.float32).view(3, 1, 1)
