"""Mistral: [TOOL_CALLS][{"name": "f", "arguments": {...}}, ...], and since its 11th tokenizer [TOOL_CALLS]f[ARGS]{...}
once for each call, perhaps with [CALL_ID] and an id before [ARGS], or with nothing between name and arguments."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from quire_engine.tools.calls import CallFormat, CallReader, Place
from quire_engine.tools.events import EventList
from quire_engine.tools.hermes import json_calls
from quire_engine.tools.json_value import JsonValue

_NAME = re.compile(r"[\w.-]+")
_LONGEST = 256  # characters of a name and what follows it: anything else is text
_HEAD = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*\w*\s*)?(?:\[ARGS\]\s*)?")


class _NamedCall:
    """Reads a name, and then its arguments."""

    def __init__(self, events: EventList, before: Sequence[str]) -> None:
        self.ended = False
        self.faulty = False
        self.unread = ""  # it holds nothing back
        self._events, self._before = events, list(before)
        self._head: list[str] = []
        self._length = 0
        self._value: JsonValue | None = None

    @property
    def started(self) -> bool:
        return self._value is not None

    def read(self, text: str, at: int) -> int:
        while at < len(text) and self._value is None and not self.faulty:
            if text[at] == "{":
                self._begin()
                continue
            self._head.append(text[at])
            self._length += 1
            at += 1
            self.faulty = self._length > _LONGEST
        if self._value is not None:
            at = self._value.read(text, at)
            self._events.arguments(self._value.taken)
            self.ended, self.faulty = self._value.ended, self._value.faulty
            if self.ended or self.faulty:
                self._events.call_ended()
        elif self.faulty:
            self.finish()
        return at

    def finish(self) -> None:
        if self._value is None:
            self._events.content("".join([*self._before, *self._head]))

    def _begin(self) -> None:
        head = _HEAD.fullmatch("".join(self._head))
        if head is None:
            self.faulty = True
            return
        self._events.call_started(head[1])
        self._value = JsonValue()


def _calls(events: EventList, names: Collection[str], place: Place) -> CallReader | None:
    behind_marker = place.first and not "".join(place.before[1:]).strip()
    if behind_marker and _NAME.match(place.char):
        return _NamedCall(events, place.before)
    return json_calls(events, names, place)


MISTRAL = CallFormat(_calls, opening=("[TOOL_CALLS]",))
