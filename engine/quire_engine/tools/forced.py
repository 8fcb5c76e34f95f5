"""What a grammar makes of an answer that has to call tools: the same for every model, whatever it writes by itself."""

from __future__ import annotations

from quire_engine.tools.calls import CallFormat
from quire_engine.tools.events import Event, EventList
from quire_engine.tools.json_value import SPACE, JsonValue
from quire_engine.tools.llama import known_json_calls

REQUIRED = CallFormat(known_json_calls, bare="[")
"""A list of calls, [{"name": "f", "parameters": {...}}, ...]."""


class NamedCall:
    """A `ToolParser` for an answer that is the arguments of one tool, and nothing else."""

    def __init__(self, name: str) -> None:
        self._name, self._events = name, EventList()
        self._value: JsonValue | None = None

    def feed(self, text: str) -> list[Event]:
        at = 0
        if self._value is None:
            at = len(text) - len(text.lstrip(SPACE))
            if at == len(text):
                return []
            self._value = JsonValue()
            self._events.call_started(self._name)
        if not self._value.ended:
            self._value.read(text, at)
            self._events.arguments(self._value.taken)
            if self._value.ended:
                self._events.call_ended()
        return self._events.take()

    def finish(self) -> list[Event]:
        return self._events.finish()
