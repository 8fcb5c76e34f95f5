"""Texts as token ids, by the shortest way that a tokenizer has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LONG_TEXT = 4096
"""Above this many characters tokenizing takes milliseconds, and an event loop should have a thread do it."""


class Encoder:
    """Encodes as the tokenizer does, and nothing is cut off or filled up.

    What is written in Rust is asked itself, as far as no class has a way of its own: a short text takes less time
    there than in what transformers does around it. Nobody may have the same tokenizer cut texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._direct: Any = None  # from the second text on: the first call sets what each one sets before it asks

    def __call__(self, text: str, *, special: bool) -> list[int]:
        """Token ids, with `special` between those that the tokenizer puts around texts."""
        if self._direct is not None:
            if len(text) > LONG_TEXT:  # of the two ways this one lets other threads run meanwhile
                (found,) = self._direct.encode_batch([text], add_special_tokens=special)
            else:
                found = self._direct.encode(text, add_special_tokens=special)
            return list(found.ids)
        ids = list(self._tokenizer.encode(text, add_special_tokens=special))
        if _is_plain(self._tokenizer):
            self._direct = self._tokenizer.backend_tokenizer
        return ids


def _is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    own = type(tokenizer)
    return (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and own.encode is PreTrainedTokenizerBase.encode
        and own._encode_plus is PreTrainedTokenizerFast._encode_plus
    )
