"""Arguments that models write as texts between tags: what they are in JSON, the tool's schema says."""

from __future__ import annotations

import json
from collections.abc import Mapping

from quire_engine.tools.calls import Offered
from quire_engine.tools.events import EventList

_WORDS = {"True": "true", "False": "false", "None": "null"}


class TaggedArguments:
    """Tells the arguments of a call, one after the other.

    One that the schema calls a string is the text itself, passed on as it comes; others are told when they are whole.
    """

    def __init__(self, events: EventList, offered: Offered, name: str, close: str, *, own_lines: bool) -> None:
        """A call of the tool `name` begins. Each value ends with the tag `close`; with `own_lines` the line breaks next
        to the tags are not of the value."""
        self._events, self._close, self._own_lines = events, close, own_lines
        schema = offered.get(name)
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        self._schemas: Mapping[str, object] = properties if isinstance(properties, Mapping) else {}
        self.open = False  # a value is being read
        self._is_text = False
        self._begun = False  # characters of the value have come
        self._value: list[str] = []  # of one that is told when it is whole
        self._any = False
        events.call_started(name)
        events.arguments("{")

    def begin(self, key: str) -> None:
        schema = self._schemas.get(key)
        self.open, self._begun = True, False
        self._is_text = isinstance(schema, Mapping) and schema.get("type") == "string"
        written = json.dumps(key, ensure_ascii=False)
        self._events.arguments(f"{', ' if self._any else ''}{written}: " + '"' * self._is_text)
        self._any = True

    def read(self, text: str, at: int) -> int:
        """Read the value from `text[at]` on. Returns the place of what is behind it, or may be of its end: while it is
        `open`, all from there on is to come again with the next text."""
        if not self._begun:
            self._begun = True
            if text[at] == "\n" and self._own_lines:
                at += 1
        close = text.find(self._close, at)
        if close >= 0:
            value = text[at:close]
            self.tell(value.removesuffix("\n") if self._own_lines else value)
            self._end_value()
            return close + len(self._close)
        wholes = (self._close, "\n" + self._close) if self._own_lines else (self._close,)
        lengths = range(min(len(wholes[-1]) - 1, len(text) - at), 0, -1)
        length = next((n for n in lengths if text.endswith(tuple(whole[:n] for whole in wholes))), 0)
        self.tell(text[at : len(text) - length])
        return len(text) - length

    def tell(self, text: str) -> None:
        """The next characters of the value."""
        if self._is_text:
            self._events.arguments(json.dumps(text, ensure_ascii=False)[1:-1])
        else:
            self._value.append(text)

    def cut_off(self, text: str) -> None:
        """No more comes: of a string what is there is told, with `text` that might have been the tag's."""
        if self.open and self._is_text:
            self.tell(text)

    def end(self) -> None:
        """The call is whole."""
        self._events.arguments("}")
        self._events.call_ended()

    def _end_value(self) -> None:
        if self._is_text:
            self._events.arguments('"')
        else:
            self._events.arguments(_as_json("".join(self._value)))
            self._value.clear()
        self.open = False


def _as_json(text: str) -> str:
    """A value as JSON: as it is where it is that, as Python's words, else as a text."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _WORDS.get(text.strip()) or json.dumps(text, ensure_ascii=False)
    return text


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
