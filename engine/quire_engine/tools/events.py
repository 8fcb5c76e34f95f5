"""What a parser makes of an answer's text as it comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Content:
    """Text for the reader, which is no part of a call."""

    text: str


@dataclass(frozen=True)
class CallStarted:
    """A call of the tool `name`. Its arguments follow, and then `CallEnded`, before anything else does."""

    name: str


@dataclass(frozen=True)
class ArgumentsDelta:
    """The next characters of the call's arguments, a JSON object."""

    text: str


@dataclass(frozen=True)
class CallEnded:
    """The call is over: its arguments are whole, or as far as they were written."""


Event = Content | CallStarted | ArgumentsDelta | CallEnded


class ToolParser(Protocol):
    """Reads one answer. However its text is cut into pieces, the same events come of it, but for where texts are cut.

    Nothing is an error: what is no call is content, and content are also the rest of a call after its first fault, and
    a call of which the name or the opening brace of the arguments is missing. It is read once, each character in
    constant time, and held back only as long as it may belong to a call.
    """

    def feed(self, text: str) -> list[Event]:
        """What the next piece of text adds."""
        ...

    def finish(self) -> list[Event]:
        """What was held back, as no more text comes."""
        ...


class EventList:
    """Gathers the events of an answer.

    Around calls whitespace is dropped: what ends a text is held back until something follows it.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._space: list[str] = []
        self._in_call = False
        self._after_call = False  # and no text since
        self._any_call = False

    def content(self, text: str) -> None:
        end = len(text.rstrip())
        if end:
            parts = [*self._space, text[:end]]
            self._space.clear()
            told = "".join(parts)
            self._add(Content(told.lstrip() if self._after_call else told))
            self._after_call = False
        if end < len(text):
            self._space.append(text[end:])

    def call_started(self, name: str) -> None:
        self._space.clear()
        self._in_call = self._any_call = True
        self._add(CallStarted(name))

    def arguments(self, text: str) -> None:
        if text:
            self._add(ArgumentsDelta(text))

    def call_ended(self) -> None:
        self._in_call, self._after_call = False, True
        self._add(CallEnded())

    def take(self) -> list[Event]:
        """The events since the last time, neighbouring texts joined."""
        taken, self._events = self._events, []
        return joined(taken)

    def finish(self) -> list[Event]:
        """End a call that is under way, let the last whitespace go where there was none, and take the rest."""
        if self._in_call:
            self.call_ended()
        if self._space and not self._any_call:
            self._add(Content("".join(self._space)))
        self._space.clear()
        return self.take()

    def _add(self, event: Event) -> None:
        self._events.append(event)


def joined(events: list[Event]) -> list[Event]:
    """The same events, with neighbouring contents as one, and neighbouring arguments."""
    made: list[Event] = []
    parts: list[str] = []
    kind: type[Content] | type[ArgumentsDelta] | None = None
    for event in [*events, None]:
        if kind is not None and type(event) is not kind:
            made.append(kind("".join(parts)))
            parts, kind = [], None
        if isinstance(event, Content | ArgumentsDelta):
            parts.append(event.text)
            kind = type(event)
        elif event is not None:
            made.append(event)
    return made
