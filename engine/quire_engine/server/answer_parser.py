"""One answer as its reader gets it: what the model thought, what it says, and what it calls."""

from __future__ import annotations

import secrets
import string
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from quire_engine.reasoning.parser import ReasoningParser
from quire_engine.tools.events import ArgumentsDelta, CallStarted, Content, Event, ToolParser

_LETTERS = string.ascii_letters + string.digits


NewId = Callable[[str, int], str]
"""Makes the id of a call, of the name of its tool and its place among the answer's calls."""


@dataclass
class CallPart:
    """What has become of a call. `id` and `name` come with its first part."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass
class AnswerPart:
    """What the next piece of text adds. Of each call there is one part at most."""

    reasoning: str = ""
    content: str = ""
    calls: list[CallPart] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.reasoning or self.content or self.calls)


class AnswerParser:
    """Takes an answer apart, as it comes or at once: both give the same."""

    def __init__(
        self,
        tools: ToolParser | None,
        reasoning: ReasoningParser | None,
        *,
        new_id: NewId,
        most_calls: int | None = None,
        tells_calls: bool = True,
        tells_reasoning: bool = True,
    ) -> None:
        """After `most_calls` other ones are dropped. `tells_calls` says that they are why the answer ends."""
        self._tools, self._reasoning = tools, reasoning
        self._new_id, self._most = new_id, most_calls
        self._tells_calls, self._tells_reasoning = tells_calls, tells_reasoning
        self._num_calls = 0
        self._num_open = 0  # tokens of pieces that began before the reasoning's end

    @property
    def num_reasoning_tokens(self) -> int | None:
        """How many tokens were reasoning, its tags included; None where nothing looks for it."""
        if self._reasoning is None:
            return None
        return self._num_open if self._reasoning.found else 0

    def feed(self, *pieces: tuple[str, int], last: bool) -> AnswerPart:
        """The next pieces of text, each with its number of tokens; with `last` nothing follows them."""
        part = AnswerPart()
        text = "".join(piece for piece, _ in pieces)
        if self._reasoning is not None:
            parts = [self._part(self._reasoning, *piece) for piece in pieces]
            if last:
                parts.append(self._reasoning.finish())
            text = "".join(said for _, said in parts)
            if self._tells_reasoning:
                part.reasoning = "".join(thought for thought, _ in parts)
        if self._tools is None:
            part.content = text
            return part
        for event in [*self._tools.feed(text), *(self._tools.finish() if last else ())]:
            self._add(event, part)
        return part

    def _part(self, reasoning: ReasoningParser, text: str, num_tokens: int) -> tuple[str, str]:
        if reasoning.open:
            self._num_open += num_tokens
        return reasoning.feed(text)

    def finish_reason(self, reason: str | None) -> str | None:
        """Why the answer ended, for its reader. For one that had to be this call OpenAI says stop, else tool_calls."""
        return "tool_calls" if reason == "stop" and self._num_calls and self._tells_calls else reason

    def _add(self, event: Event, part: AnswerPart) -> None:
        if isinstance(event, Content):
            part.content += event.text
            return
        if isinstance(event, CallStarted):
            self._num_calls += 1
        index = self._num_calls - 1
        if self._most is not None and index >= self._most:
            return
        if isinstance(event, CallStarted):
            part.calls.append(CallPart(index, self._new_id(event.name, index), event.name))
        elif isinstance(event, ArgumentsDelta):
            if not part.calls or part.calls[-1].index != index:
                part.calls.append(CallPart(index))
            part.calls[-1].arguments += event.text


def call_id(_: str, __: int) -> str:
    """A new id of a call, as vLLM writes them."""
    return f"chatcmpl-tool-{uuid.uuid4().hex}"


def short_call_id(_: str, __: int) -> str:
    """As Mistral's templates demand them: nine letters and digits."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


def numbered_call_id(earlier: int) -> NewId:
    """As Kimi's templates write them back: with the tool's name, and numbered on from the chat's `earlier` calls."""
    return lambda name, index: f"functions.{name}:{earlier + index}"
