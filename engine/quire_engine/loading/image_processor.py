"""Image files to what an encoder takes, by the image processor of transformers that the checkpoint names."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from quire_engine.core.cropped_images import CroppedCount
from quire_engine.core.images import PreparedImage, PromptImage
from quire_engine.loading.cropped_pixels import CroppedPixels
from quire_engine.loading.errors import CheckpointError
from quire_engine.models.language_model import ImageInputs
from quire_engine.models.prepared_images import plain
from quire_engine.models.vision import VisionSpec
from quire_engine.multimodal.image_files import decoded

_FILES = ("preprocessor_config.json", "processor_config.json")
_SIZES_BYTES = 64  # of the numbers beside the pixels
_BLANKS = ((64, 48), (48, 96))  # width and height


class ImageProcessor:
    """Resizes, cuts and normalises images as the model was trained with."""

    def __init__(self, directory: Path, spec: VisionSpec, dtype: torch.dtype) -> None:
        """What has fractions becomes of `dtype`.

        Raises `CheckpointError` where what stands in `directory` makes nothing that the encoder takes.

        Where it has no such file, images are treated as is usual with the encoder.
        """
        self._spec, self._dtype = spec, dtype
        self._processor = _processor(directory, spec)
        for size in _BLANKS:
            self._try(directory, spec, *size)

    def prepared(self, image: PromptImage) -> PreparedImage:
        """What the encoder takes of an image. Several threads may call it.

        Raises `ValueError` for what is no image, or not of the size that its tokens were counted by.
        """
        pixels = decoded(image.data)
        if pixels.size != (image.width, image.height):
            raise ValueError(
                f"images: one has {pixels.width} x {pixels.height} pixels and its tokens were counted by "
                f"{image.width} x {image.height}"
            )
        inputs = self._inputs(pixels)
        return plain({name: x.to(self._dtype if x.is_floating_point() else x.dtype) for name, x in inputs.items()})

    def prepared_bytes(self, image: PromptImage) -> int:
        """What `prepared` makes takes, at most."""
        shapes = self._spec.inputs(image.width, image.height).values()
        return sum(math.prod(shape) for shape in shapes) * self._dtype.itemsize + _SIZES_BYTES

    def _inputs(self, image: Image.Image) -> ImageInputs:
        made = self._processor(image, return_tensors="pt", **self._spec.options)
        return {name: made[name] for name in self._spec.inputs(*_BLANKS[0])}

    def _try(self, directory: Path, spec: VisionSpec, width: int, height: int) -> None:
        try:
            inputs = self._inputs(Image.new("RGB", (width, height)))
            made = {name: tuple(x.shape) for name, x in inputs.items()}
            finite = all(bool(x.isfinite().all()) for x in inputs.values())
        except Exception as error:  # it is a table of settings, any of which may be wrong in its own way
            raise CheckpointError(
                "InvalidCheckpoint", f"the image processor of {directory} does not work: {_first_line(error)}"
            ) from error
        if not finite:
            raise CheckpointError(
                "InvalidCheckpoint", f"the image processor of {directory} divides by 0, or by what is no number"
            )
        for name, wanted in spec.inputs(width, height).items():
            if made[name] != wanted:
                raise CheckpointError(
                    "InvalidCheckpoint",
                    f"the image processor of {directory} makes images of {list(made[name])}, {name} of one that has "
                    f"{width} x {height} pixels, and config.json asks for {list(wanted)}: they do not belong together",
                )


def image_settings(directory: Path) -> dict[str, object]:
    """What the files in `directory` say of the image processor; nothing where there are none.

    Raises `CheckpointError` for a file that cannot be read.
    """
    from transformers import ImageProcessingMixin

    if not any((directory / file).is_file() for file in _FILES):
        return {}
    try:
        settings: dict[str, object] = ImageProcessingMixin.get_image_processor_dict(directory)[0]
    except Exception as error:  # as it likes
        raise CheckpointError(
            "InvalidCheckpoint", f"the image processor of {directory} cannot be read: {_first_line(error)}"
        ) from error
    return settings


def _processor(directory: Path, spec: VisionSpec) -> Any:
    import transformers

    if isinstance(spec.count, CroppedCount):
        try:
            return CroppedPixels(spec.count, image_settings(directory))
        except ValueError as error:
            raise CheckpointError("InvalidCheckpoint", f"the image processor of {directory}: {error}") from error
    if not any((directory / file).is_file() for file in _FILES):
        name, settings = spec.usual_processor
        return getattr(transformers, name)(**settings)
    try:
        load: Callable[..., Any] = transformers.AutoImageProcessor.from_pretrained
        return load(directory, backend="pil")
    except Exception as error:  # as it likes
        raise CheckpointError(
            "InvalidCheckpoint", f"the image processor of {directory} cannot be loaded: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
