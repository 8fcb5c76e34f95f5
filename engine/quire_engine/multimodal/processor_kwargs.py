"""Settings of the image processor that the checkpoint's own give way to: --mm-processor-kwargs."""

from __future__ import annotations

import json
from collections.abc import Mapping

FLAG = "--mm-processor-kwargs"


def processor_kwargs(text: str | None) -> dict[str, object]:
    """What `{"max_pixels": 1003520}` says; None says nothing. Raises `ValueError` for what is no JSON object."""
    if text is None:
        return {}
    try:
        read = json.loads(text)
    except ValueError:
        read = None
    if not isinstance(read, dict):
        raise ValueError(f'{FLAG} is {text!r}: it must be a JSON object, such as {{"max_pixels": 1003520}}')
    return read


def check_processor_kwargs(given: Mapping[str, object], tunable: Mapping[str, int], architecture: str) -> None:
    """Raise `ValueError` for a setting that a model does not have, or a value that it cannot have.

    `tunable` are those that it has, whole numbers above 0, with the most that each may be.
    """
    for name, value in given.items():
        if name not in tunable:
            has = f"{architecture} has {', '.join(tunable)}" if tunable else f"{architecture} has none that can be set"
            raise ValueError(f"{FLAG} has {name!r}: {has}")
        most = tunable[name]
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise ValueError(f"{FLAG}: {name} is {value!r}: it must be a whole number between 1 and {most}")
