"""One call whose arguments, a JSON object, stand behind a head with the tool's name in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from quire_engine.tools.calls import CallReader, Offered, Place, Reader
from quire_engine.tools.events import EventList
from quire_engine.tools.json_value import SPACE, JsonValue

_LONGEST = 256  # characters of a head: anything else is text


@dataclass(frozen=True)
class Head:
    """What stands around the arguments.

    `pattern` is all that is before them: it begins with `begin`, and its group is the name. One of `ends` closes the
    call, where there are any; whitespace before it is dropped.
    """

    pattern: re.Pattern[str]
    begin: str = ""
    ends: tuple[str, ...] = ()


class HeadedCall:
    """Reads a head, the arguments, and the end."""

    def __init__(self, events: EventList, before: Sequence[str], head: Head) -> None:
        self.ended = False
        self.faulty = False
        self.unread = ""
        self._events, self._before, self._head = events, list(before), head
        self._read_head: list[str] = []
        self._value: JsonValue | None = None
        self._end = ""  # what was read of it

    @property
    def started(self) -> bool:
        return self._value is not None

    def read(self, text: str, at: int) -> int:
        while at < len(text) and self._value is None and not self.faulty:
            at = self._in_head(text, at)
        if self._value is not None and not self._value.ended:
            at = self._value.read(text, at)
            self._events.arguments(self._value.taken)
            self.faulty = self._value.faulty
            if self._value.ended or self.faulty:
                self._events.call_ended()
                self.ended = not self.faulty and not self._head.ends
        while at < len(text) and not self.ended and not self.faulty:
            at = self._in_end(text, at)
        return at

    def finish(self) -> None:
        if self._value is None:
            self._events.content("".join([*self._before, *self._read_head]))

    def _in_head(self, text: str, at: int) -> int:
        char, length, begin = text[at], len(self._read_head), self._head.begin
        if char == "{" and length >= len(begin):
            self._begin()
        elif length == _LONGEST or (length < len(begin) and char != begin[length]):
            self._fail()
        else:
            self._read_head.append(char)
            return at + 1
        return at

    def _begin(self) -> None:
        found = self._head.pattern.fullmatch("".join(self._read_head))
        if found is None:
            self._fail()
            return
        self._events.call_started(found[1])
        self._value = JsonValue()

    def _fail(self) -> None:
        self.faulty = True
        self.finish()

    def _in_end(self, text: str, at: int) -> int:
        if text[at] in SPACE:
            return at + 1
        end = self._end + text[at]
        if not any(one.startswith(end) for one in self._head.ends):
            self.faulty, self.unread = True, self._end
            return at
        self._end, self.ended = end, end in self._head.ends
        return at + 1


def headed_calls(head: Head) -> Reader:
    """Calls that begin as `head` does, which is not empty."""

    def reader(events: EventList, _: Offered, place: Place) -> CallReader | None:
        return HeadedCall(events, place.before, head) if head.begin.startswith(place.char) else None

    return reader
