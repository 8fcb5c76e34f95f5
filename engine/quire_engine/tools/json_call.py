"""One call as a JSON object: {"name": "f", "arguments": {...}}, or with "parameters"."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from quire_engine.tools.events import EventList
from quire_engine.tools.json_value import SPACE, JsonValue

_ARGUMENTS = ("arguments", "parameters")


class JsonCall:
    """Reads an object from its opening brace on.

    Its arguments are an object, or one written as a string, which some models do; null or none are no arguments. Other
    keys are passed over. With `names`, another name makes it no call. What was read, after `before`, is content if it
    turns out to be none.
    """

    def __init__(self, events: EventList, names: Collection[str] | None = None, before: Sequence[str] = ()) -> None:
        self.ended = False
        self.faulty = False
        self.started = False
        self.unread = ""  # it holds nothing back
        self._events, self._names = events, names
        self._raw = list(before)  # until the call has started
        self._expected = "{"  # or: key, key or }, colon, value, more
        self._value: JsonValue | None = None  # what is being read now, and what it is
        self._role = ""
        self._key = ""
        self._name: str | None = None
        self._early: list[str] | None = None  # arguments that came before the name
        self._told = False  # the call is whole: what is left is the end of the object

    def read(self, text: str, at: int) -> int:
        """Read from `text[at]` on, until `ended` or `faulty`. Returns the place of the first character not read."""
        start = at
        while at < len(text) and not self.ended and not self.faulty:
            if self._value is not None:
                at = self._value.read(text, at)
                self._follow(self._value)
            elif text[at] in SPACE or self._step(text[at]):
                at += 1
        if not self.started:
            self._raw.append(text[start:at])
            if self.faulty:
                self.finish()
        return at

    def finish(self) -> None:
        """No more comes: what was no call is content."""
        if not self.started:
            self._events.content("".join(self._raw))

    def _step(self, char: str) -> bool:
        """Take a character between values. Returns whether it was read; a value reads its own first one."""
        expected = self._expected
        if char == expected == "{":
            self._expected = "key or }"
        elif char == '"' and expected in ("key", "key or }"):
            self._value, self._role = JsonValue(), "key"
            return False
        elif char == ":" and expected == "colon":
            self._expected = "value"
        elif expected == "value":
            self._begin_value(char)
            return False
        elif char == "," and expected == "more":
            self._expected = "key"
        elif char == "}" and expected in ("more", "key or }"):
            self._end()
            return not self.faulty
        else:
            self._fail()
            return False
        return True

    def _begin_value(self, char: str) -> None:
        self._role = self._key if self._key == "name" else "other"
        if self._key in _ARGUMENTS:
            self._role = {"{": "arguments", '"': "encoded", "n": "null"}.get(char, "")
        again = self._name is not None if self._role == "name" else self._told or self._early is not None
        if not self._role or (self._role != "other" and again) or (self._role == "name" and char != '"'):
            self._fail()
            return
        self._value = JsonValue()
        if self._role == "arguments":
            self._tell("")

    def _follow(self, value: JsonValue) -> None:
        """Take what was read of a value, and what it ends with."""
        if self._role == "arguments":
            self._tell(value.taken)
        if value.faulty:
            self._fail()
        elif value.ended:
            self._value, self._expected = None, "more"
            self._value_ended(value)

    def _value_ended(self, value: JsonValue) -> None:
        if self._role == "key":
            self._key, self._expected = _decoded(value.taken), "colon"
        elif self._role == "name":
            self._name = _decoded(value.taken)
            if not self._name or (self._names is not None and self._name not in self._names):
                self._fail()
            elif self._early is not None:
                self._tell_whole("".join(self._early))
        elif self._role == "arguments" and self.started:
            self._told = True
            self._events.call_ended()
        elif self._role in ("encoded", "null"):
            arguments = "{}" if self._role == "null" else _decoded(value.taken) or "{}"
            if not is_object(arguments):
                self._fail()
            elif self._name is None:
                self._early = [arguments]
            else:
                self._tell_whole(arguments)

    def _tell(self, text: str) -> None:
        """Pass on arguments as they come, or keep them until the name does."""
        if self._name is None:
            self._early = self._early or []
            self._early.append(text)
            return
        if not self.started:
            self._start(self._name)
        self._events.arguments(text)

    def _tell_whole(self, arguments: str) -> None:
        assert self._name is not None
        self._start(self._name)
        self._events.arguments(arguments)
        self._events.call_ended()
        self._told = True

    def _start(self, name: str) -> None:
        self.started = True
        self._raw.clear()
        self._events.call_started(name)

    def _end(self) -> None:
        if self._name is None:
            self._fail()
            return
        if not self.started:
            self._tell_whole("{}")
        self.ended = True

    def _fail(self) -> None:
        self.faulty = True
        if self.started and not self._told:
            self._events.call_ended()


def is_object(text: str) -> bool:
    """Whether `text` is one JSON object."""
    value = JsonValue()
    stripped = text.strip(SPACE)
    return stripped.startswith("{") and value.read(stripped, 0) == len(stripped) and value.ended


def _decoded(string: str) -> str:
    """The text that a JSON string stands for. Half a surrogate pair, which no encoding takes, becomes U+FFFD."""
    return str(json.loads(string)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
