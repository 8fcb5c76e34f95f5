"""Messages of chats that are answered in this process: their images apart, and the rest as templates read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from quire_engine.multimodal.data_url import bytes_of
from quire_engine.multimodal.image_files import ImageFile, checked, encoded
from quire_engine.text.image_parts import template_content

Message = Mapping[str, Any]


def holds_images(message: Message) -> bool:
    """Whether one of its parts is an image."""
    return any("image" in str(part.get("type")) for part in _parts_of(message))


def without_images(
    messages: Sequence[Message], token: str, *, in_parts: bool
) -> tuple[list[dict[str, Any]], list[ImageFile]]:
    """The messages as a template reads them that `takes_parts`, or not, and the images in their order.

    An image is a part `{"type": "image_url", "image_url": {"url": "data:..."}}`, or `{"type": "image_pil", "image_pil":
    picture}`. Raises `ValueError` for any other part but texts, and for images beyond the limits.
    """
    files: list[ImageFile] = []
    made = []
    for message in messages:
        texts: list[str | None] = []
        for part in _parts_of(message):
            texts.append(str(part.get("text")) if part.get("type") == "text" else None)
            if texts[-1] is None:
                files.append(_file_of(part))
        made.append({**message, "content": template_content(texts, token, in_parts=in_parts)})
    return made, files


def _parts_of(message: Message) -> list[Mapping[str, Any]]:
    content = message.get("content")
    if not isinstance(content, list):
        return [] if content is None else [{"type": "text", "text": content}]
    return [part if isinstance(part, Mapping) else {"type": "text", "text": part} for part in content]


def _file_of(part: Mapping[str, Any]) -> ImageFile:
    kind = part.get("type")
    if kind == "image_pil":
        picture = part.get("image_pil")
        if not isinstance(picture, Image.Image):
            raise ValueError(f"image_pil is a {type(picture).__name__}: it must be a PIL image")
        return checked(encoded(picture))
    if kind != "image_url":
        raise ValueError(f"a part has the type {kind!r}: give text, image_url with a data URL, or image_pil")
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, Mapping) else given
    if not isinstance(url, str):
        raise ValueError(f"image_url is {given!r}: it must be {{'url': 'data:image/png;base64,...'}}")
    return checked(bytes_of(url))
