"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

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
from quire_engine.server.request_ids import answer_id
from quire_engine.server.sequences import TokenCount, collect
from quire_engine.server.streaming import DONE, event
from quire_engine.text.token_bytes import TokenBytes


class Chat:
    """Answers chat requests with `n` choices each."""

    def __init__(
        self,
        generation: Generation,
        prompts: Prompts,
        parameters: Parameters,
        tokens: TokenBytes,
        chat_prompts: ChatPrompts,
        response_role: str = "assistant",
    ) -> None:
        self._generation, self._prompts, self._parameters = generation, prompts, parameters
        self._tokens, self._chat_prompts, self._role = tokens, chat_prompts, response_role

    async def complete(self, request: ChatCompletionRequest, model: str) -> ChatCompletionResponse:
        pieces, count = await self._start(request)
        role, echo = self._role_of(request), self._echo(request)
        (answers,) = await collect(pieces, count, num_answers=request.num_answers, n=request.n or 1)

        def answer() -> ChatCompletionResponse:
            choices = [
                ChatChoice(
                    index=i,
                    message=ChatAnswer(role=role, content=echo + t.text),
                    logprobs=chat_logprobs(t.logprobs, self._tokens) if request.logprobs else None,
                    finish_reason=t.finish_reason,
                    stop_reason=t.stop_reason,
                )
                for i, t in enumerate(answers.texts)
            ]
            made = ChatCompletionResponse(model=model, choices=choices, usage=count.as_usage())
            if request.prompt_logprobs is not None:
                made.prompt_logprobs = prompt_logprobs(answers.prompt_logprobs, self._tokens)
            return made

        # There may be a hundred thousand logprobs, and other answers should not wait for them.
        return await asyncio.to_thread(answer) if request.tells_logprobs else answer()

    async def stream(self, request: ChatCompletionRequest, model: str) -> AsyncGenerator[bytes]:
        """Check the request, then return its events: what can be refused is refused before the answer begins."""
        pieces, count = await self._start(request)
        return self._events(request, model, pieces, count)

    async def _start(self, request: ChatCompletionRequest) -> tuple[AsyncGenerator[Piece], TokenCount]:
        ids, images = await self._chat_prompts.of(
            request, copies=request.num_sequences, keep=request.truncate_prompt_tokens
        )
        newer = request.max_completion_tokens is not None
        asked = request.max_completion_tokens if newer else request.max_tokens
        room = self._prompts.max_tokens(ids, asked, "max_completion_tokens" if newer else "max_tokens")
        params = await self._parameters.of(request, [room])
        pieces = self._generation.run(
            [ids], params, priority=request.priority or 0, cache_salt=request.cache_salt, images=images
        )
        return pieces, TokenCount(len(ids), request.num_answers)

    async def _events(
        self, request: ChatCompletionRequest, model: str, pieces: AsyncGenerator[Piece], count: TokenCount
    ) -> AsyncGenerator[bytes]:
        identity, created = answer_id("chatcmpl"), int(time.time())
        role, echo = self._role_of(request), self._echo(request)

        def chunk(index: int, delta: ChatDelta, end: Piece | None = None) -> ChatCompletionChunk:
            choice = ChatChunkChoice(
                index=index,
                delta=delta,
                logprobs=None,
                finish_reason=end.finish_reason if end else None,
            )
            if request.logprobs and end is not None:
                choice.logprobs = chat_logprobs(end.logprobs or [], self._tokens)
            if end is not None and end.finish_reason is not None:
                choice.stop_reason = end.stop_reason
            return whole([choice])

        def whole(choices: list[ChatChunkChoice]) -> ChatCompletionChunk:
            made = ChatCompletionChunk(
                id=identity, object="chat.completion.chunk", created=created, model=model, choices=choices
            )
            if request.streams_usage:
                made.usage = count.as_usage() if not choices or request.streams_usage_so_far else None
            return made

        for index in range(request.n or 1):
            yield event(chunk(index, ChatDelta(role=role, content="")))
            if echo:
                yield event(chunk(index, ChatDelta(content=echo)))
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                count.add(piece)
                yield event(chunk(piece.index, ChatDelta(content=piece.text) if piece.text else ChatDelta(), piece))
        if request.streams_usage:
            yield event(whole([]))
        yield DONE

    def _role_of(self, request: ChatCompletionRequest) -> str:
        return self._role if request.begins_an_answer else request.messages[-1].role

    def _echo(self, request: ChatCompletionRequest) -> str:
        """The text of the last message where `echo` asks for it and the answer goes on in its role."""
        last = request.messages[-1]
        return last.text if request.echo and last.role == self._role_of(request) else ""
