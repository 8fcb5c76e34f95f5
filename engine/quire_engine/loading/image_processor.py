"""Image files to pixels, by the image processor of transformers that the checkpoint names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from quire_engine.loading.errors import CheckpointError
from quire_engine.models.clip import ClipSpec
from quire_engine.multimodal.image_files import decoded

_FILES = ("preprocessor_config.json", "processor_config.json")


class ImagePixels:
    """Resizes, crops and normalises images as the model was trained with."""

    def __init__(self, directory: Path, spec: ClipSpec) -> None:
        """Raises `CheckpointError` where what stands in `directory` makes no images of the encoder's size.

        Where it has no such file, images are treated as CLIP's own are.
        """
        self._processor = _processor(directory, spec)
        wanted = (spec.channels, spec.image_size, spec.image_size)
        try:
            blank = self._pixels(_blank())
            made, finite = tuple(blank.shape), bool(blank.isfinite().all())
        except Exception as error:  # it is a table of settings, any of which may be wrong in its own way
            raise CheckpointError(
                "InvalidCheckpoint", f"the image processor of {directory} does not work: {_first_line(error)}"
            ) from error
        if not finite:
            raise CheckpointError(
                "InvalidCheckpoint", f"the image processor of {directory} divides by 0, or by what is no number"
            )
        if made != wanted:
            raise CheckpointError(
                "InvalidCheckpoint",
                f"the image processor of {directory} makes images of {list(made)} and config.json's vision_config asks "
                f"for {list(wanted)}: they do not belong together",
            )

    def of_file(self, data: bytes) -> torch.Tensor:
        """[channels, image_size, image_size] float32 on the CPU. Raises `ValueError` for what is no image."""
        return self._pixels(decoded(data))

    def _pixels(self, image: object) -> torch.Tensor:
        pixels: torch.Tensor = self._processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels


def _processor(directory: Path, spec: ClipSpec) -> Any:
    from transformers import AutoImageProcessor, CLIPImageProcessorPil

    if not any((directory / file).is_file() for file in _FILES):
        size = spec.image_size
        return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    try:
        load: Callable[..., Any] = AutoImageProcessor.from_pretrained
        return load(directory, backend="pil")
    except Exception as error:  # as it likes
        raise CheckpointError(
            "InvalidCheckpoint", f"the image processor of {directory} cannot be loaded: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _blank() -> object:
    from PIL import Image

    return Image.new("RGB", (64, 48))
