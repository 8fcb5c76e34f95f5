"""Durations such as 60ms, 15s or 1m30s."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from quire_operator.api.rule import Rule

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"(\d+(?:\.\d+)?)(ms|s|m|h)"

DURATION = "^([0-9]+([.][0-9]+)?(ms|s|m|h))+$"
"""What the API server takes for a duration."""


def parse_duration(text: str) -> float:
    """Seconds. Raises ValueError when `text` is no duration."""
    if not re.fullmatch(f"(?:{_PART})+", text):
        raise ValueError(f"{text!r} is not a duration: write a number with a unit, such as 60ms, 15s or 5m")
    return sum(float(number) * _SECONDS[unit] for number, unit in re.findall(_PART, text))


def _is_positive(text: str) -> bool:
    try:
        return parse_duration(text) > 0
    except ValueError:
        return False


Duration = Annotated[
    str,
    Field(max_length=32),
    Rule(
        cel=f"self.matches('{DURATION}') && duration(self) > duration('0s')",
        message="not a duration above zero: write a number with a unit, such as 60ms, 15s or 5m",
        holds=_is_positive,
    ),
]
"""A positive duration, kept as the text that was written."""
