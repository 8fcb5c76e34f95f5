"""GLM-4.5 to 4.7: <tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value>...</tool_call>, once for each call."""

from __future__ import annotations

import re

from quire_engine.tools.calls import CallFormat, CallReader, Offered, Place
from quire_engine.tools.events import EventList
from quire_engine.tools.tagged_arguments import TaggedArguments
from quire_engine.tools.tagged_call import LONGEST, TaggedCall

_KEY, _KEY_END, _VALUE, _END = "<arg_key>", "</arg_key>", "<arg_value>", "</tool_call>"
_NAME = re.compile(r"[\w.-]+\s*")
# As far as a parameter has come before its value: with the key's end, or without.
_PARAMETER = re.compile(rf"{_KEY}([^<>\n]*)({_KEY_END}\s*)?")


class GlmCall(TaggedCall):
    """Reads from the name on."""

    def _read_tag(self, text: str, at: int) -> int:
        if self._arguments is None:
            return self._read_name(text, at)
        if text[at].isspace():
            return at + 1
        if text.startswith(_END, at):
            self._end()
            return at + len(_END)
        found = _PARAMETER.match(text, at)
        if found is not None and found[2] and text.startswith(_VALUE, found.end()):
            self._arguments.begin(found[1].strip())
            return found.end() + len(_VALUE)
        if found is None:
            return self._hold(text, at, at, _KEY, _END)
        return self._hold(text, at, found.end(), _VALUE if found[2] else _KEY_END)

    def _read_name(self, text: str, at: int) -> int:
        found = _NAME.match(text, at)
        end = at if found is None else found.end()
        if not text.startswith((_KEY, _END), end):
            return self._hold(text, at, end, _KEY, _END)
        name = text[at:end].strip()
        self._arguments = TaggedArguments(self._events, self._offered, name, "</arg_value>", own_lines=False)
        return end

    def _hold(self, text: str, at: int, known: int, *tags: str) -> int:
        """Wait for more of `text[at:]`, of which the end from `known` on has to become one of the tags."""
        rest = text[known:]
        if len(text) - at < LONGEST and any(tag.startswith(rest) for tag in tags):
            self._held = text[at:]
            return len(text)
        self._fail()
        return at


def _glm_calls(events: EventList, offered: Offered, place: Place) -> CallReader | None:
    return GlmCall(events, offered, place.before) if place.first and _NAME.match(place.char) else None


GLM45 = CallFormat(_glm_calls, opening=("<tool_call>",), closing=("</tool_call>",))
