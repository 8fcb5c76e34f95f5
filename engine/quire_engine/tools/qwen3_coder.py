"""Qwen 3 Coder: <tool_call><function=f><parameter=a>1</parameter>...</function></tool_call>, once for each call.

Models at times forget <tool_call>: a call begins without it, too.
"""

from __future__ import annotations

import re

from quire_engine.tools.calls import CallFormat, CallReader, Offered, Place
from quire_engine.tools.events import EventList
from quire_engine.tools.tagged_arguments import TaggedArguments
from quire_engine.tools.tagged_call import LONGEST, TaggedCall

_HEAD, _PARAMETER, _END = "<function=", "<parameter=", "</function>"
_NAME = re.compile(r"[^<>\n]+")


class XmlCall(TaggedCall):
    """Reads from <function= on."""

    def _read_tag(self, text: str, at: int) -> int:
        if self.started and text[at].isspace():
            return at + 1
        close = text.find(">", at, at + LONGEST)
        expected = (_PARAMETER, _END) if self.started else (_HEAD,)
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
            self._arguments = TaggedArguments(self._events, self._offered, name, "</parameter>", own_lines=True)
        else:
            self._arguments.begin(name)
        return close + 1


def _xml_calls(events: EventList, offered: Offered, place: Place) -> CallReader | None:
    return XmlCall(events, offered, place.before) if place.char == "<" else None


QWEN3_CODER = CallFormat(_xml_calls, opening=("<tool_call>",), closing=("</tool_call>",), heads=(_HEAD,))
