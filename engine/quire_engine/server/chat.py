"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from quire_engine.server.answer_formats import AnswerFormats
from quire_engine.server.answer_parser import AnswerParser, AnswerPart
from quire_engine.server.chat_prompts import ChatPrompts
from quire_engine.server.generation import Generation, Piece
from quire_engine.server.logprobs import chat_logprobs, prompt_logprobs
from quire_engine.server.parameters import Parameters
from quire_engine.server.prompts import Prompts
from quire_engine.server.protocol.chat import (
    ChatAnswer,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatDelta,
)
from quire_engine.server.protocol.tools import CalledFunction, FunctionDelta, ToolCall, ToolCallDelta
from quire_engine.server.request_ids import answer_id
from quire_engine.server.sequences import TokenCount, WholeText, collect
from quire_engine.server.streaming import DONE, event
from quire_engine.server.tracing.facts import note_start
from quire_engine.text.token_bytes import TokenBytes


@dataclass
class Started:
    """An answer that is being made. `parser` makes what reads one of its choices, if not all of that is content."""

    prompt: list[int]
    pieces: AsyncGenerator[Piece]
    count: TokenCount
    parser: Callable[[], AnswerParser | None]


class Chat:
    """Answers chat requests with `n` choices each."""

    def __init__(
        self,
        generation: Generation,
        prompts: Prompts,
        parameters: Parameters,
        tokens: TokenBytes,
        chat_prompts: ChatPrompts,
        formats: AnswerFormats,
        response_role: str = "assistant",
    ) -> None:
        self._generation, self._prompts, self._parameters = generation, prompts, parameters
        self._tokens, self._chat_prompts, self._formats, self._role = tokens, chat_prompts, formats, response_role

    async def complete(self, request: ChatCompletionRequest, model: str) -> ChatCompletionResponse:
        started = await self.start(request)
        count, role, echo = started.count, self._role_of(request), self._echo(request)
        (answers,) = await collect(started.pieces, count, num_answers=request.num_answers, n=request.n or 1)

        def answer() -> ChatCompletionResponse:
            choices, parsers = [], [started.parser() for _ in answers.texts]
            for i, (parser, text) in enumerate(zip(parsers, answers.texts, strict=True)):
                message, reason = _message(parser, text, role, echo)
                count.note_end(i, reason)
                choice = ChatChoice(index=i, message=message, finish_reason=reason, stop_reason=text.stop_reason)
                if request.return_token_ids:
                    choice.token_ids = text.token_ids
                if request.logprobs:  # set later, as pydantic would look at each of them with Python's lock held
                    choice.logprobs = chat_logprobs(text.logprobs, self._tokens, by_id=request.shows_token_ids)
                choices.append(choice)
            made = ChatCompletionResponse(model=model, choices=choices, usage=count.as_usage(_num_thought(parsers)))
            if request.return_token_ids:
                made.prompt_token_ids = started.prompt
            if request.prompt_logprobs is not None:
                made.prompt_logprobs = prompt_logprobs(answers.prompt_logprobs, self._tokens)
            return made

        # There may be a hundred thousand logprobs, and other answers should not wait for them.
        return await asyncio.to_thread(answer) if request.tells_logprobs else answer()

    async def stream(self, request: ChatCompletionRequest, model: str) -> AsyncGenerator[bytes]:
        """Check the request, then return its events: what can be refused is refused before the answer begins."""
        return self._events(request, model, await self.start(request))

    async def start(self, request: ChatCompletionRequest, *, drops_oldest: bool = False) -> Started:
        """Check the request and have it computed. Raises `ApiError`.

        `drops_oldest` leaves out the oldest messages where all with the answer would not fit in the context.
        """
        self._formats.check(request)
        newer = request.max_completion_tokens is not None
        asked = request.max_completion_tokens if newer else request.max_tokens
        copies = request.num_sequences
        if drops_oldest:
            ids, images = await self._chat_prompts.shortened(request, answer=asked, copies=copies)
        else:
            ids, images = await self._chat_prompts.of(
                request, copies=copies, keep=request.truncate_prompt_tokens, side=request.truncation_side
            )
        room = self._prompts.max_tokens(ids, asked, "max_completion_tokens" if newer else "max_tokens")
        params = await self._parameters.of(request, [room])
        params = [self._formats.shaped(own, request, ids) for own in params]
        pieces = self._generation.run(
            [ids],
            params,
            priority=request.priority or 0,
            cache_salt=request.cache_salt,
            images=images,
            model=request.model,
        )
        count = TokenCount(len(ids), request.num_answers)
        note_start(count, params[0])
        return Started(ids, pieces, count, lambda: self._formats.parser(request, ids))

    async def _events(self, request: ChatCompletionRequest, model: str, started: Started) -> AsyncGenerator[bytes]:
        count = started.count
        parsers = [started.parser() for _ in range(request.n or 1)]
        identity, created = answer_id("chatcmpl"), int(time.time())
        role, echo = self._role_of(request), self._echo(request)
        streams_usage, so_far = request.streams_usage, request.streams_usage_so_far

        def chunk(
            index: int, delta: ChatDelta, end: Piece | None = None, reason: str | None = None
        ) -> ChatCompletionChunk:
            choice = ChatChunkChoice(index, delta, finish_reason=reason)
            if request.logprobs and end is not None:
                choice.logprobs = chat_logprobs(end.logprobs or [], self._tokens, by_id=request.shows_token_ids)
            if request.return_token_ids and end is not None:
                choice.token_ids = end.token_ids
            if end is not None and end.finish_reason is not None:
                choice.stop_reason = end.stop_reason
            return whole([choice])

        def whole(choices: list[ChatChunkChoice]) -> ChatCompletionChunk:
            made = ChatCompletionChunk(identity, "chat.completion.chunk", created, model, choices)
            if streams_usage:
                made.usage = count.as_usage(_num_thought(parsers)) if not choices or so_far else None
            return made

        for index in range(request.n or 1):
            first = chunk(index, ChatDelta(role=role, content=""))
            if request.return_token_ids and index == 0:
                first.prompt_token_ids = started.prompt
            yield event(first)
            if echo:
                yield event(chunk(index, ChatDelta(content=echo)))
        async with contextlib.aclosing(started.pieces):
            async for piece in started.pieces:
                count.add(piece)
                parser = parsers[piece.index]
                if parser is None:
                    delta = ChatDelta(content=piece.text) if piece.text else ChatDelta()
                    yield event(chunk(piece.index, delta, piece, piece.finish_reason))
                    continue
                part = parser.feed((piece.text, len(piece.token_ids)), last=piece.finish_reason is not None)
                tells_tokens = request.logprobs or request.return_token_ids
                if part.empty and piece.finish_reason is None and not tells_tokens:
                    continue  # held back: what it is shows later
                reason = parser.finish_reason(piece.finish_reason)
                count.note_end(piece.index, reason)
                yield event(chunk(piece.index, _delta(part), piece, reason))
        if streams_usage:
            yield event(whole([]))
        yield DONE

    def _role_of(self, request: ChatCompletionRequest) -> str:
        return self._role if request.begins_an_answer else request.messages[-1].role

    def _echo(self, request: ChatCompletionRequest) -> str:
        """The text of the last message where `echo` asks for it and the answer goes on in its role."""
        last = request.messages[-1]
        return last.text if request.echo and last.role == self._role_of(request) else ""


def _message(parser: AnswerParser | None, text: WholeText, role: str, echo: str) -> tuple[ChatAnswer, str | None]:
    """A whole answer, and why it ended."""
    if parser is None:
        return ChatAnswer(role=role, content=echo + text.text), text.finish_reason
    part = parser.feed(*text.parts, last=True)
    message = ChatAnswer(role=role, content=(echo + part.content) or None)
    if part.reasoning:
        message.reasoning = message.reasoning_content = part.reasoning
    for call in part.calls:
        function = CalledFunction(name=call.name or "", arguments=call.arguments)
        message.tool_calls.append(ToolCall(id=call.id or "", function=function))
    return message, parser.finish_reason(text.finish_reason)


def _num_thought(parsers: list[AnswerParser | None]) -> int | None:
    """How many tokens of all choices were reasoning; None where nothing looks for it."""
    counts = [parser.num_reasoning_tokens for parser in parsers if parser is not None]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _delta(part: AnswerPart) -> ChatDelta:
    """What is new in an answer, with only the fields in which something is."""
    delta = ChatDelta()
    if part.reasoning:
        delta.reasoning = delta.reasoning_content = part.reasoning
    if part.content:
        delta.content = part.content
    if part.calls:
        delta.tool_calls = [
            ToolCallDelta(index=call.index, function=FunctionDelta(arguments=call.arguments))
            if call.id is None
            else ToolCallDelta(
                index=call.index,
                id=call.id,
                type="function",
                function=FunctionDelta(name=call.name or "", arguments=call.arguments),
            )
            for call in part.calls
        ]
    return delta
