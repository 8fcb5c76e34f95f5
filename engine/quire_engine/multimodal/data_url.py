"""Images that stand in a request itself, as data URLs (RFC 2397)."""

from __future__ import annotations

import base64
import binascii

from quire_engine.multimodal.image_files import MAX_BYTES

_LONGEST_HEAD = 128
_AS = "send it as data:image/png;base64,..."


def bytes_of(url: str) -> bytes:
    """The bytes in `url`. Raises `ValueError` for any other URL."""
    scheme, colon, rest = url[:_LONGEST_HEAD].partition(":")
    if not colon or scheme.lower() != "data":
        raise ValueError(f"the URL begins with {url[:24]!r} and no image is fetched: {_AS}")
    head, comma, _ = rest.partition(",")
    kind, *parameters = head.lower().split(";")
    if not comma or not kind.startswith("image/"):
        raise ValueError(f"the data URL holds {kind[:32]!r}, which is no type of an image: {_AS}")
    if "base64" not in parameters:
        raise ValueError(f"the data URL is not in base64: {_AS}")
    start = len(scheme) + 1 + len(head) + 1
    size = (len(url) - start) // 4 * 3
    if size > MAX_BYTES + 2:  # of the last three bytes, two may be padding
        raise ValueError(f"the image has some {size} bytes: it must be at most {MAX_BYTES}")
    try:
        return base64.b64decode(url[start:], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the data URL's base64 cannot be read: {error}") from error
