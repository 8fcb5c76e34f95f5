"""POST /v1/responses: a chat in another shape."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from quire_engine.server.answer_parser import AnswerPart
from quire_engine.server.chat import Chat, Started
from quire_engine.server.errors import ApiError
from quire_engine.server.logprobs import chat_logprobs
from quire_engine.server.protocol.responses import (
    InputTokensDetails,
    OutputTokensDetails,
    ResponseObject,
    ResponsesRequest,
    ResponseUsage,
    TextConfig,
)
from quire_engine.server.response_prompts import as_chat, in_its_words
from quire_engine.server.response_writer import Event, ResponseWriter
from quire_engine.server.sequences import TokenCount
from quire_engine.server.tracing.facts import note_failure
from quire_engine.text.token_bytes import TokenBytes

log = logging.getLogger(__name__)


@dataclass
class _Answer:
    """A response that is being made, out of the answer to a chat."""

    started: Started
    writer: ResponseWriter
    with_logprobs: bool


class Responses:
    """Answers requests for responses by the chat that they are."""

    def __init__(self, chat: Chat, tokens: TokenBytes) -> None:
        self._chat, self._tokens = chat, tokens

    async def complete(self, request: ResponsesRequest, model: str) -> ResponseObject:
        answer = await self._start(request, model)
        try:
            async for _ in self._events(answer):
                pass
        except ApiError as error:
            raise in_its_words(error) from error
        return answer.writer.response

    async def stream(self, request: ResponsesRequest, model: str) -> AsyncGenerator[bytes]:
        """Check the request, then return its events: what can be refused is refused before the answer begins."""
        return self._encoded(await self._start(request, model))

    async def _start(self, request: ResponsesRequest, model: str) -> _Answer:
        chat = as_chat(request)
        try:
            started = await self._chat.start(chat, drops_oldest=request.truncation == "auto")
        except ApiError as error:
            raise in_its_words(error) from error
        return _Answer(started, ResponseWriter(_empty(request, model)), request.tells_logprobs)

    async def _encoded(self, answer: _Answer) -> AsyncGenerator[bytes]:
        try:
            async with contextlib.aclosing(self._events(answer)) as events:
                async for event in events:
                    yield event.encode()
        except ApiError as error:
            note_failure(error.status)
            for event in answer.writer.fail(in_its_words(error)):
                yield event.encode()
        except Exception as error:  # the head says 200 already: only an event can tell the client
            note_failure(500)
            log.exception("a stream failed")
            for event in answer.writer.fail(ApiError(500, f"this is a fault of the server: {type(error).__name__}")):
                yield event.encode()

    async def _events(self, answer: _Answer) -> AsyncGenerator[Event]:
        writer, count, parser = answer.writer, answer.started.count, answer.started.parser()
        for event in writer.begin():
            yield event
        cut = False
        async with contextlib.aclosing(answer.started.pieces) as pieces:
            async for piece in pieces:
                count.add(piece)
                cut = piece.finish_reason == "length"
                part = AnswerPart(content=piece.text)
                if parser is not None:
                    part = parser.feed((piece.text, len(piece.token_ids)), last=piece.finish_reason is not None)
                    count.note_end(piece.index, parser.finish_reason(piece.finish_reason))
                if part.reasoning:
                    for event in writer.reasoning(part.reasoning):
                        yield event
                if part.content:
                    logprobs = piece.logprobs or [] if answer.with_logprobs else []
                    for event in writer.text(part.content, chat_logprobs(logprobs, self._tokens)["content"]):
                        yield event
                for call in part.calls:
                    for event in writer.call(call):
                        yield event
        thought = parser.num_reasoning_tokens if parser is not None else None
        for event in writer.end(_usage(count, thought or 0), cut=cut):
            yield event


def _empty(request: ResponsesRequest, model: str) -> ResponseObject:
    """The response before anything is answered: what it was asked with."""
    return ResponseObject(
        model=model,
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        metadata=request.metadata or {},
        parallel_tool_calls=request.parallel_tool_calls is not False,
        reasoning=request.reasoning,
        temperature=request.temperature,
        text=(request.text or TextConfig()).model_dump(by_alias=True),
        tool_choice=request.tool_choice or "auto",
        tools=request.tools or [],
        top_logprobs=request.top_logprobs or 0,
        top_p=request.top_p,
        truncation=request.truncation or "disabled",
        user=request.user,
    )


def _usage(count: TokenCount, num_thought: int) -> ResponseUsage:
    usage = count.as_usage()
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=cached),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=num_thought),
        total_tokens=usage.total_tokens,
    )
