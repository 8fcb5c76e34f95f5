"""Llama 3.1 and 3.2: the answer begins with {"name": "f", "parameters": {...}}, or <|python_tag|> stands before it.

Several calls are separated by semicolons. Any answer in JSON may begin so: only the name of a tool makes it a call.
"""

from __future__ import annotations

from collections.abc import Collection

from quire_engine.tools.calls import CallFormat, CallReader, Place
from quire_engine.tools.events import EventList
from quire_engine.tools.json_call import JsonCall


def known_json_calls(events: EventList, names: Collection[str], place: Place) -> CallReader | None:
    """JSON objects that name one of the tools."""
    return JsonCall(events, names, place.before) if place.char == "{" else None


LLAMA3_JSON = CallFormat(known_json_calls, opening=("<|python_tag|>",), bare="{")
