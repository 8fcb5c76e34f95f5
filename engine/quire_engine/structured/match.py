"""One answer's place in its grammar."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quire_engine.structured.compiler import allowed_text, reason_of
from quire_engine.structured.panics import panics_as_errors

if TYPE_CHECKING:
    from llguidance import LLMatcher

# Processor time that an answer may spend on its grammar: a little at first, for what is found out only once, and
# so much for each token. Steps wait for it.
_FIRST_SECONDS = 1.0
_SECONDS_PER_TOKEN = 0.01


@dataclass(frozen=True, slots=True)
class Limits:
    """What an answer's masks say beside its grammar.

    `ends` may come exactly where the grammar may end, `own_ends` are what the matcher takes for its end, and masks have
    `num_bytes`.
    """

    ends: frozenset[int]
    own_ends: tuple[int, ...]
    num_bytes: int

    def anything(self) -> bytes:
        """The mask of all tokens but those that end an answer."""
        mask = bytearray(b"\xff" * self.num_bytes)
        for token in {*self.ends, *self.own_ends}:
            if token // 8 < len(mask):
                mask[token // 8] &= ~(1 << token % 8)
        return bytes(mask)

    def only_ends(self) -> bytes:
        """The mask of the tokens that end an answer."""
        mask = bytearray(self.num_bytes)
        for token in self.ends:
            mask[token // 8] |= 1 << token % 8
        return bytes(mask)


class Match:
    """Follows an answer's grammar token by token."""

    def __init__(self, matcher: LLMatcher, limits: Limits) -> None:
        """`matcher` is this answer's own."""
        self._matcher, self._limits = matcher, limits
        self._seconds_left = _FIRST_SECONDS
        self.allowed = b""
        self.finished = False
        self._look_ahead()

    def advance(self, token: int) -> None:
        """Move past `token`. Raises `ValueError` where the answer cannot go on."""
        started = time.thread_time()
        with panics_as_errors():
            moved = self._matcher.consume_token(token)
        if not moved:
            raise ValueError(f"structured_outputs: the answer cannot go on: {reason_of(self._matcher)}")
        self._look_ahead()
        self._seconds_left += _SECONDS_PER_TOKEN - (time.thread_time() - started)
        if self._seconds_left < 0:
            raise ValueError("structured_outputs: the grammar takes too long to follow: write one less ambiguous")

    def fork(self) -> Match:
        """One that is as far, and goes on by itself."""
        other = copy.copy(self)
        with panics_as_errors():
            other._matcher = self._matcher.deep_copy()
        return other

    def _look_ahead(self) -> None:
        with panics_as_errors():
            if self._matcher.is_stopped() and not self._matcher.is_error() and self._matcher.is_accepting():
                self.finished, self.allowed = True, self._limits.only_ends()  # without the cost of a mask
                return
            mask = allowed_text(self._matcher, self._limits.own_ends)
        if self._matcher.is_error():
            raise ValueError(f"structured_outputs: the answer cannot go on: {reason_of(self._matcher)}")
        num_bytes = self._limits.num_bytes
        mask = mask.ljust(num_bytes, b"\0")[:num_bytes]  # the model's tokens, in whole words
        accepting = self._matcher.is_accepting()
        self.finished = mask.count(0) == len(mask)
        if self.finished and not accepting:
            raise ValueError("structured_outputs: the answer cannot go on: none of the model's tokens continues it")
        if accepting:
            for token in self._limits.ends:
                mask[token // 8] |= 1 << token % 8
        self.allowed = bytes(mask)
