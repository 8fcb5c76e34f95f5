"""The parser of every format whose calls stand between markers, or begin an answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from quire_engine.tools.events import Event, EventList

_SEPARATORS = " \t\n\r,;[]"
# Between calls these are of no interest to anyone, even where no other call follows.
_DROPPED = " \t\n\r,;]"


class CallReader(Protocol):
    """Reads one call, as `JsonCall`."""

    @property
    def ended(self) -> bool: ...

    @property
    def faulty(self) -> bool: ...

    @property
    def started(self) -> bool:
        """Whether a call came of it, whole or not."""
        ...

    @property
    def unread(self) -> str:
        """Where it is faulty, what it had held back and stands before the place that `read` returned."""
        ...

    def read(self, text: str, at: int) -> int: ...

    def finish(self) -> None: ...


@dataclass(frozen=True)
class Place:
    """Where a call may begin: at `char`; `first` behind a marker or at the answer's beginning, else behind a call."""

    char: str
    first: bool
    before: Sequence[str]  # what stands between the marker and here, with it


Offered = Mapping[str, Mapping[str, object] | None]
"""The tools that an answer may call: JSON schemas of their arguments by their names."""

Reader = Callable[[EventList, Offered, Place], CallReader | None]


@dataclass(frozen=True)
class CallFormat:
    """How a model writes calls.

    `opening` markers begin a series of calls and `closing` ones end it, but need not come. With `bare`, calls may also
    be the answer's first text, beginning with one of these characters. `heads` are the first characters of calls that
    need no marker before them. `reader` gives what reads a call that begins at a place, or None where none can. Between
    calls there may be whitespace, commas, semicolons and square brackets.
    """

    reader: Reader
    opening: tuple[str, ...] = ()
    closing: tuple[str, ...] = ()
    bare: str = ""
    heads: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        return self.opening + self.closing + self.heads


class CallParser:
    """A `ToolParser` of one format."""

    def __init__(self, format: CallFormat, offered: Offered) -> None:
        self._format, self._offered = format, offered
        self._events = EventList()
        self._markers = re.compile("|".join(re.escape(m) for m in format.markers) or r"(?!)")
        self._longest = max((len(m) for m in format.markers), default=1)
        self._state = self._begin if format.bare else self._text
        self._held = ""  # perhaps the beginning of a marker
        self._unread = ""  # of a call that was none
        self._call: CallReader | None = None
        self._before: list[str] = []  # since the marker or the last call
        self._first = True  # no call since the marker
        self._opened = False  # a marker opened the calls that follow, and they were not closed

    def feed(self, text: str) -> list[Event]:
        text, self._held = self._held + text, ""
        at = 0
        while at < len(text):
            at = self._state(text, at)
            if self._unread:
                text, at, self._unread = self._unread + text[at:], 0, ""
        return self._events.take()

    def finish(self) -> list[Event]:
        if self._call is not None:
            self._call.finish()
        elif self._state == self._between:
            self._leave("" if self._opened and not self._first else self._held)
        else:
            self._events.content(self._held)
        return self._events.finish()

    def _begin(self, text: str, at: int) -> int:
        """Before the answer's first character that is not whitespace."""
        char = text[at]
        if char.isspace():
            self._events.content(char)
            return at + 1
        if char in self._format.bare:
            self._enter()
        else:
            self._state = self._text
        return at

    def _text(self, text: str, at: int) -> int:
        """Outside of calls."""
        found = self._markers.search(text, at)
        if found is None:
            end = len(text) - self._partial_marker(text, at)
            self._held = text[end:]
            self._events.content(text[at:end])
            return len(text)
        self._events.content(text[at : found.start()])
        if found[0] in self._format.heads:
            self._enter()
            self._opened = True
            return found.start()
        self._marker(found[0])
        return found.end()

    def _marker(self, marker: str) -> None:
        if marker in self._format.opening:
            self._enter()
            self._before, self._opened = [marker], True
        elif self._opened:
            self._opened = False
            self._state = self._text
        else:
            self._events.content(marker)

    def _between(self, text: str, at: int) -> int:
        """Behind a marker or a call, where another call may begin."""
        found = self._markers.match(text, at)
        if found is not None and found[0] not in self._format.heads:
            self._leave("")
            self._marker(found[0])
            return found.end()
        if len(text) - at < self._longest and self._partial_marker(text, at) == len(text) - at:
            self._held = text[at:]
            return len(text)
        char = text[at]
        place = Place(char, self._first, self._before if self._first else ())
        self._call = self._format.reader(self._events, self._offered, place)
        if self._call is not None:
            self._state, self._before = self._in_call, []
        elif char in _SEPARATORS:
            self._before.append(char)
            return at + 1
        else:
            self._leave("")
        return at

    def _in_call(self, text: str, at: int) -> int:
        assert self._call is not None
        at = self._call.read(text, at)
        if self._call.ended:
            self._call, self._first, self._state = None, False, self._between
        elif self._call.faulty:
            self._opened = self._opened and self._call.started
            self._unread = self._call.unread
            self._state = self._text if self._call.started else self._past_head
            self._call = None
        return at

    def _past_head(self, text: str, at: int) -> int:
        """At what was no call: its head is content, or it would be taken for one again, and for ever."""
        head = next((head for head in self._format.heads if text.startswith(head, at)), "")
        self._events.content(head)
        self._state = self._text
        return at + len(head)

    def _enter(self) -> None:
        self._state, self._before, self._first = self._between, [], True

    def _leave(self, rest: str) -> None:
        """No call begins here, and `rest` is the last text: what was taken for what precedes one is content."""
        before = "".join(self._before) + rest
        if self._first or before.strip(_DROPPED):
            self._events.content(before)
        if self._first:
            self._opened = False
        self._state, self._before = self._text, []

    def _partial_marker(self, text: str, at: int) -> int:
        """How many of the last characters of `text[at:]` may be the beginning of a marker."""
        for length in range(min(len(text) - at, self._longest - 1), 0, -1):
            end = text[len(text) - length :]
            if any(len(m) > length and m.startswith(end) for m in self._format.markers):
                return length
        return 0
