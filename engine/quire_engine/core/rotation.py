"""Rotary embeddings whose angles depend on how long a sequence is, and not on positions alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RotationByLength:
    """How such a model is served. A key stays in the cache as it was rotated, so the length has to be known before.

    "longrope": a sequence of more than `original` tokens has other frequencies, for all of its positions. One that
    grows over that is computed anew, once. "dynamic": a prompt of more than `original` tokens has the frequencies of
    its length, and a later token those of the length that the sequence has with it. Both is what transformers does.
    """

    kind: Literal["longrope", "dynamic"]
    original: int

    def length(self, num_prompt_tokens: int, num_tokens: int) -> int:
        """The length that a sequence is rotated for as it starts: 0 where it is no longer than `original`."""
        length = num_prompt_tokens if self.kind == "dynamic" else min(num_tokens, self.original + 1)
        return length if length > self.original else 0
