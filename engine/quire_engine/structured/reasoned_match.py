"""One answer's place in a form that holds only for what follows its reasoning."""

from __future__ import annotations

import copy

from quire_engine.structured.match import Limits, Match
from quire_engine.structured.panics import panics_as_errors
from quire_engine.structured.reasoning_grammar import CompiledReasoning


class ReasonedMatch:
    """One answer's place in its form, behind reasoning.

    Inside of reasoning every token may come but those that end answers, and no mask is computed: that would take
    milliseconds a token. Only where the last characters may be the beginning of the end tag it is, so that a token
    which holds the rest of the tag, and more, goes on as the form says.
    """

    def __init__(self, reasoning: CompiledReasoning, limits: Limits, first: Match | None) -> None:
        """`first` is at the beginning of an answer that may begin with reasoning, or without; None inside of it."""
        self._reasoning, self._limits = reasoning, limits
        self._start, self._end = reasoning.tags.start.encode(), reasoning.tags.end.encode()
        self._match = first  # None while every token may come
        self._head: bytes | None = None if first is None else b""  # until it shows what the answer begins with
        self._tail: bytes | None = b"" if first is None else None  # of the reasoning: perhaps a part of its end tag
        self._free = limits.anything()

    @property
    def allowed(self) -> bytes:
        return self._free if self._match is None else self._match.allowed

    @property
    def finished(self) -> bool:
        return self._match is not None and self._match.finished

    def advance(self, token: int) -> None:
        """Move past `token`. Raises `ValueError` where the answer cannot go on."""
        if self._head is None and self._tail is None:
            assert self._match is not None
            self._match.advance(token)
            return
        text = self._reasoning.vocabulary.decode_bytes([token])
        ends = self._tail is not None and self._end in self._tail + text
        if self._match is None and ends:
            self._match = self._inside(self._tail or b"")
        if self._match is not None:
            self._match.advance(token)
        if self._head is not None:
            self._follow_head(self._head + text)
        elif self._tail is not None:
            self._follow_tail(self._tail + text)

    def fork(self) -> ReasonedMatch:
        """One that is as far, and goes on by itself."""
        other = copy.copy(self)
        other._match = None if self._match is None else self._match.fork()
        return other

    def _follow_head(self, head: bytes) -> None:
        """See whether the answer begins with reasoning."""
        if head.startswith(self._start):
            self._head = None
            self._follow_tail(head[len(self._start) :])
        else:
            self._head = head if self._start.startswith(head) else None

    def _follow_tail(self, text: bytes) -> None:
        """See whether reasoning goes on, may be about to end, or has ended."""
        if self._end in text:
            self._tail = None
            return
        length = next((n for n in range(min(len(self._end) - 1, len(text)), 0, -1) if text.endswith(self._end[:n])), 0)
        self._tail = text[len(text) - length :]
        if not length:
            self._match = None
        elif self._match is None:
            self._match = self._inside(self._tail)

    def _inside(self, tail: bytes) -> Match:
        """Inside of reasoning, where it ends with `tail`."""
        with panics_as_errors():
            matcher = self._reasoning.matcher.deep_copy()
            matcher.consume_tokens(self._reasoning.vocabulary.tokenize_bytes(tail))
        return Match(matcher, self._limits)
