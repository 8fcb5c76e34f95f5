"""What a single token stands for, byte by byte: logprobs show tokens one at a time."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")  # how SentencePiece writes a byte that no other token covers


def _bytes_of_characters() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's table: printable bytes stand for
    themselves, the others for the characters from 256 on, in order)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class TokenBytes:
    """The bytes of a tokenizer's tokens, such that those of an answer's tokens, joined, are the answer's text.

    Remembers the tokens that it was asked for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}
        self._added = {int(i): str(token) for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
        self._special = set(tokenizer.all_special_ids)
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        is_byte_level = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()
        self._bytes_of = _bytes_of_characters() if is_byte_level else {}
        # Decoded behind another one, a token keeps the space that it begins with.
        self._anchor = list(tokenizer.encode("a", add_special_tokens=False))

    def of(self, token_id: int) -> bytes:
        """The bytes of a token, which may be a part of a character. Empty for an id that the tokenizer lacks."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._look_up(token_id)
        return known

    def text(self, token_id: int) -> str:
        """The token as text, with U+FFFD for what is no whole character."""
        return self.of(token_id).decode(errors="replace")

    def is_special(self, token_id: int) -> bool:
        """Whether texts leave the token out, with `skip_special_tokens`."""
        return token_id in self._special

    def _look_up(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(piece, str):
            return b""
        if self._bytes_of and all(character in self._bytes_of for character in piece):
            return bytes(self._bytes_of[character] for character in piece)
        byte = _BYTE_TOKEN.fullmatch(piece)
        if byte is not None:
            return bytes([int(byte[1], 16)])
        before, both = self._decode(self._anchor), self._decode([*self._anchor, token_id])
        text = both.removeprefix(before) if both.startswith(before) else self._decode([token_id])
        return text.encode()

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
