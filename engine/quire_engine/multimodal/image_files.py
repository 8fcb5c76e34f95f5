"""Image files: what may be in them, and the image that they hold."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps

from quire_engine.memory_plan.image_encoders import MAX_PIXELS

MAX_BYTES = 20 << 20
MAX_RATIO = 100  # an image processor makes the shorter side as long as its encoder needs, and the other one with it
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file that holds an image, and how large that is, in pixels, as it is meant to be seen."""

    data: bytes
    width: int
    height: int


def digest_of(data: bytes) -> bytes:
    """What an image is known by, 32 bytes: equal files are equal images."""
    return hashlib.sha256(data).digest()


def checked(data: bytes) -> ImageFile:
    """The file, with its size. Raises `ValueError` where `decoded` would not give an image, or one beyond the limits.

    A file's header is looked at before its pixels are given memory.
    """
    if not data:
        raise ValueError("the image is empty: send the bytes of a file")
    if len(data) > MAX_BYTES:
        raise ValueError(f"the image has {len(data)} bytes: it must be at most {MAX_BYTES}")
    with _opened(data) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"the image has {width} x {height} pixels: it must be at most {MAX_PIXELS} in all")
        if max(width, height) > MAX_RATIO * min(width, height):
            raise ValueError(
                f"the image has {width} x {height} pixels: a side must be at most {MAX_RATIO} times the other"
            )
    width, height = decoded(data).size
    return ImageFile(data, width, height)


def decoded(data: bytes) -> Image.Image:
    """The image of a file in RGB, as it is meant to be seen. Of an animation it is the first one.

    Raises `ValueError` for a file that is cut off or broken.
    """
    with _opened(data) as image:
        try:
            return ImageOps.exif_transpose(image).convert("RGB")
        except Exception as error:  # Pillow's decoders raise what their formats give occasion for
            raise ValueError(f"the image cannot be decoded: {_first_line(error)}") from error


def encoded(image: Image.Image) -> bytes:
    """The file, without loss, of an image that is in memory."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "PNG", compress_level=1, exif=b"")
    return file.getvalue()


def _opened(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its bound on pixels, of which only twice as many are an error
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f"the image has too many pixels: it must be at most {MAX_PIXELS} in all") from error
    except Exception as error:  # as above
        raise ValueError(f"this is no image: {', '.join(FORMATS)} are taken") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
