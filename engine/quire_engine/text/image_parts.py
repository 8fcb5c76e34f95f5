"""Messages with images in them, as chat templates read them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_PROBE = "colour"


def takes_parts(tokenizer: PreTrainedTokenizerBase, template: str | None, token: str) -> bool:
    """Whether a template gives images their token, and texts in parts their place; others take plain texts."""
    chat: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _PROBE}]}]
    try:
        text = str(tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False))
    except Exception as error:  # noqa: BLE001  a template is its author's code: it raises what it likes
        log.debug("the chat template takes no content in parts: %s", error)
        return False
    return text.count(token) == 1 and _PROBE in text


def template_content(parts: Sequence[str | None], token: str | None, *, in_parts: bool) -> str | list[dict[str, str]]:
    """A message's content for a template that `takes_parts`, or for others: texts, and None for each image."""
    if in_parts:
        return [{"type": "image"} if text is None else {"type": "text", "text": text} for text in parts]
    return "".join(f"{token}\n" if text is None else text for text in parts)
