"""The reader of calls whose arguments stand between tags."""

from __future__ import annotations

from collections.abc import Sequence

from quire_engine.tools.calls import Offered
from quire_engine.tools.events import EventList
from quire_engine.tools.tagged_arguments import TaggedArguments

LONGEST = 300  # characters of a tag


class TaggedCall:
    """Reads one call. Subclasses know its tags."""

    def __init__(self, events: EventList, offered: Offered, before: Sequence[str]) -> None:
        self.ended = False
        self.faulty = False
        self.unread = ""
        self._events, self._offered, self._before = events, offered, list(before)
        self._arguments: TaggedArguments | None = None  # once the call has started
        self._held = ""  # a tag, or what may be the end of a value

    @property
    def started(self) -> bool:
        return self._arguments is not None

    def read(self, text: str, at: int) -> int:
        text, at, given, kept = self._held + text[at:], 0, len(text), len(self._held)
        self._held = ""
        while at < len(text) and not self.ended and not self.faulty:
            if self._arguments is None or not self._arguments.open:
                at = self._read_tag(text, at)
                continue
            at = self._arguments.read(text, at)
            if self._arguments.open:
                self._held, at = text[at:], len(text)
        if self.faulty:
            self.unread = text[at:kept]
            at = max(at, kept)
        return given - (len(text) - at)

    def finish(self) -> None:
        if self._arguments is None:
            self._events.content("".join([*self._before, self._held]))
        else:
            self._arguments.cut_off(self._held)

    def _read_tag(self, text: str, at: int) -> int:
        """Read the tag at `text[at]`, or hold it while it is not whole. Returns the place behind."""
        raise NotImplementedError  # every format has its own

    def _end(self) -> None:
        assert self._arguments is not None
        self._arguments.end()
        self.ended = True

    def _fail(self) -> None:
        """What is no tag is content, from there on."""
        self.faulty = True
        if self.started:
            self._events.call_ended()
        else:
            self._events.content("".join(self._before))
