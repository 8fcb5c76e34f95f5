"""How many images a prompt may have: --limit-mm-per-prompt."""

from __future__ import annotations

import json

MOST_IMAGES = 16


def most_images(text: str | None) -> int:
    """What `image=4` or `{"image": 4}` allows; None is the default. Raises `ValueError` for anything else."""
    if text is None:
        return MOST_IMAGES
    try:
        limits = json.loads(text) if text.lstrip().startswith("{") else _pairs(text)
    except ValueError:
        limits = {}
    count = limits.get("image")
    if set(limits) != {"image"} or not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ValueError(f'--limit-mm-per-prompt is {text!r}: it must be as image=4 or {{"image": 4}}')
    return count


def _pairs(text: str) -> dict[str, int]:
    name, _, count = text.partition("=")
    return {name.strip(): int(count)}
