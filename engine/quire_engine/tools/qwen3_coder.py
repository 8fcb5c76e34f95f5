"""Qwen 3 Coder: <tool_call><function=f><parameter=a>1</parameter>...</function></tool_call>, once for each call.

Models at times forget <tool_call>: a call of a tool that is offered begins without it, too, where a parameter or the
end follows. Anything else may be an answer about such calls.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from quire_engine.tools.calls import CallFormat, CallReader, Offered, Place
from quire_engine.tools.events import EventList
from quire_engine.tools.tagged_arguments import TaggedArguments
from quire_engine.tools.tagged_call import LONGEST, TaggedCall

_HEAD, _PARAMETER, _END = "<function=", "<parameter=", "</function>"
_INSIDE = (_PARAMETER, _END)
_NAME = re.compile(r"[^<>\n]+")


class XmlCall(TaggedCall):
    """Reads from <function= on."""

    def __init__(self, events: EventList, offered: Offered, before: Sequence[str], *, is_expected: bool) -> None:
        super().__init__(events, offered, before)
        self._is_expected = is_expected  # a marker or another call stands before it

    def _read_tag(self, text: str, at: int) -> int:
        if self.started and text[at].isspace():
            return at + 1
        close = text.find(">", at, at + LONGEST)
        expected = _INSIDE if self.started else (_HEAD,)
        if close < 0:
            begun = text[at:]
            if len(begun) < LONGEST and any(tag.startswith(begun[: len(tag)]) for tag in expected):
                self._held = begun
                return len(text)
            self._fail()
            return at
        tag = text[at : close + 1]
        if self.started and tag == _END:
            self._end()
            return close + 1
        name = tag[len(expected[0]) : -1].strip()
        if not tag.startswith(expected[0]) or not _NAME.fullmatch(name):
            self._fail()
            return at
        if self._arguments is None:
            if not self._is_expected:
                follows = text[close + 1 :].lstrip()
                if name not in self._offered or not any(tag.startswith(follows[: len(tag)]) for tag in _INSIDE):
                    self._fail()
                    return at
                if not follows.startswith(_INSIDE) and len(text) - at < LONGEST:
                    self._held = text[at:]
                    return len(text)
            self._arguments = TaggedArguments(self._events, self._offered, name, "</parameter>", own_lines=True)
        else:
            self._arguments.begin(name)
        return close + 1


def _xml_calls(events: EventList, offered: Offered, place: Place) -> CallReader | None:
    is_expected = bool(place.before) or not place.first
    return XmlCall(events, offered, place.before, is_expected=is_expected) if place.char == "<" else None


QWEN3_CODER = CallFormat(_xml_calls, opening=("<tool_call>",), closing=("</tool_call>",), heads=(_HEAD,))
