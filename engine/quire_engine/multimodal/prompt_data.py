"""Images that come with a prompt in this process, as `multi_modal_data`."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image

from quire_engine.multimodal.image_files import ImageFile, checked, encoded


def files_of(data: Mapping[str, object]) -> list[ImageFile]:
    """The files of `{"image": one or a list}`, each a PIL image or the bytes of a file.

    Raises `ValueError` for anything else, and for images beyond the limits.
    """
    others = sorted(set(data) - {"image"})
    if others:
        raise ValueError(f"multi_modal_data has {others[0]!r}: only images are taken, as {{'image': ...}}")
    given = data.get("image", [])
    files = []
    for image in given if isinstance(given, list | tuple) else [given]:
        if isinstance(image, Image.Image):
            image = encoded(image)
        if not isinstance(image, bytes):
            raise ValueError(f"multi_modal_data has a {type(image).__name__}: give a PIL image, or the bytes of a file")
        files.append(checked(image))
    return files
