"""Llama 4, Llama 3.2 and others: the answer is [f(a=1, b="x"), g()], a list of Python's calls with keywords.

Llama 4 may put <|python_start|> and <|python_end|> around it, and OLMo 3 <function_calls>, with a call a line. Only
the name of a tool makes it a call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence

from quire_engine.tools.calls import CallFormat, CallReader, Place
from quire_engine.tools.events import EventList
from quire_engine.tools.python_value import PythonValue

_NAME = re.compile(r"[\w.-]")
_LONGEST = 256  # characters of a name


class PythonCall:
    """Reads `f(a=1)` from the name on, and gives the arguments as JSON. What was read, after `before`, is content if
    no call of one of `names` comes of it."""

    def __init__(self, events: EventList, names: Collection[str], before: Sequence[str]) -> None:
        self.ended = False
        self.faulty = False
        self.unread = ""  # it holds nothing back
        self._events, self._names, self._before = events, names, list(before)
        self._word: list[str] = []  # the name of the tool, or of an argument
        # What is expected: the tool's name; an argument or the end; the rest of an argument's name; = behind it; a
        # value; a comma or the end.
        self._state = "name"
        self._value: PythonValue | None = None
        self._any = False  # argument

    @property
    def started(self) -> bool:
        return self._state != "name"

    def read(self, text: str, at: int) -> int:
        while at < len(text) and not self.ended and not self.faulty:
            if self._value is not None:
                at = self._value.read(text, at)
                self._follow(self._value)
            elif self._step(text[at]):
                at += 1
        if self.faulty:
            self.finish()
        return at

    def finish(self) -> None:
        if not self.started:
            self._events.content("".join([*self._before, *self._word]))

    def _step(self, char: str) -> bool:
        state = self._state
        if state == "name":
            return self._step_in_name(char)
        if char.isspace():
            if state == "keyword":
                self._state = "="
        elif char == ")" and state in ("argument", "more"):
            self._events.arguments("}")
            self._events.call_ended()
            self.ended = True
        elif char == "," and state == "more":
            self._state = "argument"
        elif char == "=" and state in ("keyword", "="):
            self._begin_value()
        elif state in ("argument", "keyword") and _NAME.match(char) and len(self._word) < _LONGEST:
            self._word.append(char)
            self._state = "keyword"
        else:
            self._fail()
        return not self.faulty

    def _step_in_name(self, char: str) -> bool:
        if _NAME.match(char) and len(self._word) < _LONGEST:
            self._word.append(char)
            return True
        name = "".join(self._word)
        if char != "(" or name not in self._names:
            self.faulty = True
            return False
        self._word.clear()
        self._state = "argument"
        self._events.call_started(name)
        self._events.arguments("{")
        return True

    def _begin_value(self) -> None:
        key = json.dumps("".join(self._word), ensure_ascii=False)
        self._events.arguments(f"{', ' if self._any else ''}{key}: ")
        self._word.clear()
        self._value, self._any = PythonValue(), True

    def _follow(self, value: PythonValue) -> None:
        self._events.arguments(value.taken)
        if value.faulty:
            self._word.append(value.unread)
            self._fail()
        elif value.ended:
            self._value, self._state = None, "more"

    def _fail(self) -> None:
        self.faulty = True
        self._events.call_ended()
        self._events.content("".join(self._word))


def python_calls(events: EventList, names: Collection[str], place: Place) -> CallReader | None:
    return PythonCall(events, names, place.before) if _NAME.match(place.char) else None


PYTHONIC = CallFormat(
    python_calls,
    opening=("<|python_start|>", "<function_calls>"),
    closing=("<|python_end|>", "</function_calls>"),
    bare="[",
)
