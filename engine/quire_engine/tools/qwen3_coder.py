"""Qwen 3 Coder: <tool_call><function=f><parameter=a>1</parameter>...</function></tool_call>, once for each call.

What a parameter is, a text or JSON, its schema says: a parameter of the type string is the text itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from quire_engine.tools.calls import CallFormat, CallReader, Offered, Place
from quire_engine.tools.events import EventList

_HEAD, _PARAMETER, _END = "<function=", "<parameter=", "</function>"
_CLOSE = "</parameter>"
_LONGEST = 300  # characters of a tag
_WORDS = {"True": "true", "False": "false", "None": "null"}
_NAME = re.compile(r"[^<>\n]+")


class XmlCall:
    """Reads from <function= on, and gives the parameters as JSON."""

    def __init__(self, events: EventList, offered: Offered, before: Sequence[str]) -> None:
        self.ended = False
        self.faulty = False
        self.started = False
        self._events, self._offered, self._before = events, offered, list(before)
        self.unread = ""
        self._held = ""  # a tag, or what may be the end of a value
        self._schemas: Mapping[str, object] = {}
        self._key: str | None = None  # of the parameter that is being read
        self._is_text = False
        self._begun = False  # characters of the value have come
        self._value: list[str] = []  # of one that is told when it is whole
        self._any = False  # parameter

    def read(self, text: str, at: int) -> int:
        text, at, given, kept = self._held + text[at:], 0, len(text), len(self._held)
        self._held = ""
        while at < len(text) and not self.ended and not self.faulty:
            at = self._read_value(text, at) if self._key is not None else self._read_tag(text, at)
        if self.faulty:
            self.unread = text[at:kept]
            at = max(at, kept)
        return given - (len(text) - at)

    def finish(self) -> None:
        if not self.started:
            self._events.content("".join([*self._before, self._held]))
        elif self._key is not None and self._is_text:
            self._tell(self._held)

    def _read_tag(self, text: str, at: int) -> int:
        if self.started and text[at].isspace():
            return at + 1
        close = text.find(">", at, at + _LONGEST)
        expected = (_PARAMETER, _END) if self.started else (_HEAD,)
        if close < 0:
            begun = text[at:]
            if len(begun) < _LONGEST and any(tag.startswith(begun[: len(tag)]) for tag in expected):
                self._held = begun
                return len(text)
            self._fail()
            return at
        tag = text[at : close + 1]
        if self.started and tag == _END:
            self._events.arguments("}")
            self._events.call_ended()
            self.ended = True
            return close + 1
        name = tag[len(expected[0]) : -1].strip()
        if not tag.startswith(expected[0]) or not _NAME.fullmatch(name):
            self._fail()
            return at
        if self.started:
            self._begin_value(name)
        else:
            self._start(name)
        return close + 1

    def _start(self, name: str) -> None:
        self.started = True
        self._events.call_started(name)
        self._events.arguments("{")
        schema = self._offered.get(name)
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        self._schemas = properties if isinstance(properties, Mapping) else {}

    def _begin_value(self, key: str) -> None:
        schema = self._schemas.get(key)
        self._key, self._begun = key, False
        self._is_text = isinstance(schema, Mapping) and schema.get("type") == "string"
        written = json.dumps(key, ensure_ascii=False)
        self._events.arguments(f"{', ' if self._any else ''}{written}: " + '"' * self._is_text)
        self._any = True

    def _read_value(self, text: str, at: int) -> int:
        if not self._begun:
            self._begun = True
            if text[at] == "\n":
                return at + 1
        close = text.find(_CLOSE, at)
        if close >= 0:
            self._tell(text[at:close].removesuffix("\n"))
            self._end_value()
            return close + len(_CLOSE)
        whole = "\n" + _CLOSE  # the last line's end is the tag's
        lengths = range(min(len(whole) - 1, len(text) - at), 0, -1)
        length = next((n for n in lengths if text.endswith((whole[:n], _CLOSE[:n]))), 0)
        self._held = text[len(text) - length :]
        self._tell(text[at : len(text) - length])
        return len(text)

    def _tell(self, text: str) -> None:
        if self._is_text:
            self._events.arguments(json.dumps(text, ensure_ascii=False)[1:-1])
        else:
            self._value.append(text)

    def _end_value(self) -> None:
        if self._is_text:
            self._events.arguments('"')
        else:
            self._events.arguments(_as_json("".join(self._value)))
            self._value.clear()
        self._key = None

    def _fail(self) -> None:
        """What is no tag is content, from there on."""
        self.faulty = True
        if self.started:
            self._events.call_ended()
        else:
            self._events.content("".join(self._before))


def _as_json(text: str) -> str:
    """A value as JSON: as it is where it is that, as Python's words, else as a text."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _WORDS.get(text.strip()) or json.dumps(text, ensure_ascii=False)
    return text


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _xml_calls(events: EventList, offered: Offered, place: Place) -> CallReader | None:
    return XmlCall(events, offered, place.before) if place.char == "<" else None


QWEN3_CODER = CallFormat(_xml_calls, opening=("<tool_call>",), closing=("</tool_call>",))
