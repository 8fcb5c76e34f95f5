"""The syntax of llguidance's variant of Lark."""

from __future__ import annotations

import json


def quoted(text: str) -> str:
    """`text` as a string of Lark."""
    return json.dumps(text).replace("\x7f", r"\u007f")
