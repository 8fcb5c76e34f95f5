"""A response and its events, out of the parts of an answer. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel
from pydantic_core import to_json

from quire_engine.server.answer_parser import CallPart
from quire_engine.server.errors import ApiError
from quire_engine.server.logprobs import ChatTokenLogprob
from quire_engine.server.protocol.response_input import ReasoningText
from quire_engine.server.protocol.responses import (
    IncompleteDetails,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ResponseError,
    ResponseObject,
    ResponseUsage,
    Status,
)
from quire_engine.server.request_ids import answer_id

Field = BaseModel | Sequence[ChatTokenLogprob] | str | int | None


@dataclass(frozen=True)
class Event:
    """One of the typed events of OpenAI's streams, which are numbered from 0."""

    type: str
    number: int
    fields: dict[str, Field]

    def encode(self) -> bytes:
        body = to_json({"type": self.type, "sequence_number": self.number, **self.fields})
        return b"event: " + self.type.encode() + b"\ndata: " + body + b"\n\n"


class ResponseWriter:
    """Fills a response, item by item. Each method yields the events that tell of it.

    The events hold the response and its items as they are: encode one before the next is made.
    """

    def __init__(self, response: ResponseObject) -> None:
        self.response = response
        self._number = 0
        self._item: OutputItem | None = None  # the one that is being written: the last of the output
        self._pieces: list[str] = []  # of its text, which it has once it is closed

    def begin(self) -> Iterator[Event]:
        yield self._event("response.created", response=self.response)
        yield self._event("response.in_progress", response=self.response)

    def text(self, delta: str, logprobs: list[ChatTokenLogprob]) -> Iterator[Event]:
        """More of the answer's text."""
        if not isinstance(self._item, OutputMessage):
            yield from self._close("completed")
            message = OutputMessage(id=self._id("msg"))
            yield from self._open(message)
            message.content.append(OutputText())
            yield self._of_part("response.content_part.added", message, part=message.content[0])
        assert isinstance(self._item, OutputMessage)
        self._item.content[0].logprobs += logprobs
        if delta:
            self._pieces.append(delta)
            yield self._of_part("response.output_text.delta", self._item, delta=delta, logprobs=logprobs)

    def reasoning(self, delta: str) -> Iterator[Event]:
        """More of what the model thinks."""
        if not isinstance(self._item, OutputReasoning):
            yield from self._close("completed")
            item = OutputReasoning(id=self._id("rs"))
            yield from self._open(item)
            item.content.append(ReasoningText(text=""))
            yield self._of_part("response.content_part.added", item, part=item.content[0])
        assert self._item is not None
        self._pieces.append(delta)
        yield self._of_part("response.reasoning_text.delta", self._item, delta=delta)

    def call(self, part: CallPart) -> Iterator[Event]:
        """More of the arguments of a call, or a new one."""
        if part.id is not None:
            yield from self._close("completed")
            yield from self._open(OutputCall(id=self._id("fc"), call_id=part.id, name=part.name or ""))
        assert isinstance(self._item, OutputCall)
        if part.arguments:
            self._pieces.append(part.arguments)
            yield self._of_item("response.function_call_arguments.delta", self._item, delta=part.arguments)

    def end(self, usage: ResponseUsage, *, cut: bool) -> Iterator[Event]:
        """The end of the answer, which `cut` says was not its own."""
        if not self.response.output:
            yield from self.text("", [])
        status: Status = "incomplete" if cut else "completed"
        yield from self._close(status)
        self.response.status, self.response.usage = status, usage
        if cut:
            self.response.incomplete_details = IncompleteDetails()
        else:
            self.response.completed_at = int(time.time())
        yield self._event(f"response.{status}", response=self.response)

    def fail(self, error: ApiError) -> Iterator[Event]:
        """What went wrong after the answer had begun."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        self.response.status, self.response.error = "failed", ResponseError(code=code, message=error.message)
        yield self._event("error", code=code, message=error.message, param=error.param)
        yield self._event("response.failed", response=self.response)

    def _open(self, item: OutputItem) -> Iterator[Event]:
        self._item = item
        self.response.output.append(item)
        yield self._event("response.output_item.added", output_index=self._place, item=item)

    def _close(self, status: Status) -> Iterator[Event]:
        item, self._item = self._item, None
        if item is None:
            return
        text, self._pieces = "".join(self._pieces), []
        match item:
            case OutputMessage():
                said = item.content[0]
                said.text = text
                yield self._of_part("response.output_text.done", item, text=text, logprobs=said.logprobs)
                yield self._of_part("response.content_part.done", item, part=said)
            case OutputReasoning():
                thought = item.content[0]
                thought.text = text
                yield self._of_part("response.reasoning_text.done", item, text=text)
                yield self._of_part("response.content_part.done", item, part=thought)
            case OutputCall():
                item.arguments = text
                done = "response.function_call_arguments.done"
                yield self._of_item(done, item, name=item.name, arguments=text)
        item.status = status
        yield self._event("response.output_item.done", output_index=self._place, item=item)

    @property
    def _place(self) -> int:
        return len(self.response.output) - 1

    def _id(self, prefix: str) -> str:
        """The id of the next item."""
        return f"{answer_id(prefix)}-{len(self.response.output)}"

    def _of_item(self, type: str, item: OutputItem, **fields: Field) -> Event:
        return self._event(type, item_id=item.id, output_index=self._place, **fields)

    def _of_part(self, type: str, item: OutputItem, **fields: Field) -> Event:
        return self._of_item(type, item, content_index=0, **fields)

    def _event(self, type: str, **fields: Field) -> Event:
        made = Event(type, self._number, fields)
        self._number += 1
        return made
