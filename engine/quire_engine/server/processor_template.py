"""The chat template that older checkpoints of models which take images keep apart from their tokenizer."""

from __future__ import annotations

import json
from pathlib import Path


def processor_template(directory: Path) -> str | None:
    """What chat_template.json in `directory` says; None where it says nothing."""
    try:
        content = json.loads((directory / "chat_template.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    template = content.get("chat_template") if isinstance(content, dict) else None
    return template if isinstance(template, str) else None
