"""Mistral: [TOOL_CALLS][{"name": "f", "arguments": {...}}, ...], and since its 11th tokenizer [TOOL_CALLS]f[ARGS]{...}
once for each call, perhaps with [CALL_ID] and an id before [ARGS], or with nothing between name and arguments."""

from __future__ import annotations

import re

from quire_engine.tools.calls import CallFormat, CallReader, Offered, Place
from quire_engine.tools.events import EventList
from quire_engine.tools.headed_call import Head, HeadedCall
from quire_engine.tools.hermes import json_calls

_NAME = re.compile(r"[\w.-]+")
_HEAD = Head(re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*\w*\s*)?(?:\[ARGS\]\s*)?"))


def _calls(events: EventList, offered: Offered, place: Place) -> CallReader | None:
    behind_marker = place.first and not "".join(place.before[1:]).strip()
    if behind_marker and _NAME.match(place.char):
        return HeadedCall(events, place.before, _HEAD)
    return json_calls(events, offered, place)


MISTRAL = CallFormat(_calls, opening=("[TOOL_CALLS]",))
