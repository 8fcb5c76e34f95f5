"""Hermes 2 and 3, Qwen 2.5 and 3: <tool_call>{"name": "f", "arguments": {...}}</tool_call>, once for each call."""

from __future__ import annotations

from collections.abc import Collection

from quire_engine.tools.calls import CallFormat, CallReader, Place
from quire_engine.tools.events import EventList
from quire_engine.tools.json_call import JsonCall


def json_calls(events: EventList, _: Collection[str], place: Place) -> CallReader | None:
    """JSON objects, of whatever name: behind a marker nothing else is meant."""
    return JsonCall(events, None, place.before) if place.char == "{" else None


HERMES = CallFormat(json_calls, opening=("<tool_call>",), closing=("</tool_call>",))
