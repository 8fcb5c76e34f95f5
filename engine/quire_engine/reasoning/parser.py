"""Parts reasoning from the answer that follows it, as both are being written."""

from __future__ import annotations

from quire_engine.reasoning.tags import ReasoningTags


class ReasoningParser:
    """Reads one answer. However its text is cut, the same comes of it.

    The answer is reasoning up to the end tag if it begins inside, or with the start tag; without an end tag, all of it.
    Whitespace around reasoning is dropped. A piece is held back only as long as it may belong to a tag, or be the last
    whitespace.
    """

    def __init__(self, tags: ReasoningTags, *, begun: bool) -> None:
        self._tags, self._begun = tags, begun
        self._state = self._before
        self._held = ""  # perhaps the beginning of a tag
        self._space: list[str] = []  # whether it is dropped shows with what follows
        self._thought: list[str] = []
        self._said: list[str] = []
        self._any = False  # reasoning was told
        self.found = False  # any reasoning, if only its tags

    @property
    def open(self) -> bool:
        """Whether what comes next may be reasoning."""
        return self._state in (self._before, self._inside)

    def feed(self, text: str) -> tuple[str, str]:
        """What the next piece adds to the reasoning, and to the answer."""
        text, self._held = self._held + text, ""
        at = 0
        while at < len(text):
            at = self._state(text, at)
        return self._take()

    def finish(self) -> tuple[str, str]:
        """What was held back, as no more text comes."""
        if self._state == self._before:
            (self._thought if self._begun else self._said).extend([*([] if self._begun else self._space), self._held])
        elif self._state == self._inside:
            self._tell(self._held)
        return self._take()

    def _take(self) -> tuple[str, str]:
        told = "".join(self._thought), "".join(self._said)
        self._thought.clear()
        self._said.clear()
        return told

    def _before(self, text: str, at: int) -> int:
        """Up to the first character that is neither whitespace nor of the start tag."""
        start = self._tags.start
        if text[at].isspace():
            self._space.append(text[at])
            return at + 1
        if text.startswith(start, at):
            self._enter()
            return at + len(start)
        if start.startswith(text[at:]):
            self._held = text[at:]
            return len(text)
        if self._begun:
            self._enter()
        else:
            self._said.extend(self._space)
            self._state = self._answer
        return at

    def _enter(self) -> None:
        self._space.clear()
        self._state, self.found = self._inside, True

    def _inside(self, text: str, at: int) -> int:
        end = self._tags.end
        found = text.find(end, at)
        if found >= 0:
            self._tell(text[at:found])
            self._space.clear()
            self._state = self._after
            return found + len(end)
        length = next((n for n in range(min(len(end) - 1, len(text) - at), 0, -1) if text.endswith(end[:n])), 0)
        self._held = text[len(text) - length :]
        self._tell(text[at : len(text) - length])
        return len(text)

    def _tell(self, text: str) -> None:
        """Add to the reasoning, but for whitespace at its beginning and, so far, at its end."""
        end = len(text.rstrip())
        if end:
            told = "".join([*self._space, text[:end]])
            self._space.clear()
            self._thought.append(told if self._any else told.lstrip())
            self._any = True
        self._space.append(text[end:])

    def _after(self, text: str, at: int) -> int:
        """Whitespace between reasoning and answer."""
        if not text[at].isspace():
            self._state = self._answer
            return at
        return at + 1

    def _answer(self, text: str, at: int) -> int:
        self._said.append(text[at:])
        return len(text)
