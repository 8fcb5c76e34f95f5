"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator

from quire_engine.server.chat_images import ChatImages
from quire_engine.server.errors import ApiError
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
        images: ChatImages,
        response_role: str = "assistant",
    ) -> None:
        self._generation, self._prompts, self._parameters = generation, prompts, parameters
        self._tokens, self._images, self._role = tokens, images, response_role

    async def complete(self, request: ChatCompletionRequest, model: str) -> ChatCompletionResponse:
        pieces, count = await self._start(request)
        (answers,) = await collect(pieces, count, num_answers=request.num_answers, n=request.n or 1)

        def answer() -> ChatCompletionResponse:
            choices = [
                ChatChoice(
                    index=i,
                    message=ChatAnswer(role=self._role, content=t.text),
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
        files = await self._images.files(request.messages, request.num_sequences)
        if files and request.truncate_prompt_tokens is not None:
            raise ApiError(400, "truncate_prompt_tokens would cut images: leave it out", param="truncate_prompt_tokens")
        messages = [m.as_template_input(self._images.token, in_parts=self._images.in_parts) for m in request.messages]
        ids = await self._prompts.from_chat(messages, request.add_generation_prompt, request.chat_template_kwargs)
        ids, images = self._images.expanded(ids, files)
        ids = self._prompts.truncated(ids, request.truncate_prompt_tokens)
        newer = request.max_completion_tokens is not None
        asked = request.max_completion_tokens if newer else request.max_tokens
        room = self._prompts.max_tokens(ids, asked, "max_completion_tokens" if newer else "max_tokens")
        params = await self._parameters.of(request, [room])
        pieces = self._generation.run(
            [ids], params, priority=request.priority or 0, cache_salt=request.cache_salt, images=tuple(images)
        )
        return pieces, TokenCount(len(ids), request.num_answers)

    async def _events(
        self, request: ChatCompletionRequest, model: str, pieces: AsyncGenerator[Piece], count: TokenCount
    ) -> AsyncGenerator[bytes]:
        identity, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        with_usage = request.stream_options is not None and request.stream_options.include_usage

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
            return _chunk(identity, created, model, [choice], with_usage)

        for index in range(request.n or 1):
            yield event(chunk(index, ChatDelta(role=self._role, content="")))
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                count.add(piece)
                yield event(chunk(piece.index, ChatDelta(content=piece.text) if piece.text else ChatDelta(), piece))
        if with_usage:
            last = _chunk(identity, created, model, [], with_usage)
            last.usage = count.as_usage()
            yield event(last)
        yield DONE


def _chunk(
    identity: str, created: int, model: str, choices: list[ChatChunkChoice], with_usage: bool
) -> ChatCompletionChunk:
    made = ChatCompletionChunk(
        id=identity, object="chat.completion.chunk", created=created, model=model, choices=choices
    )
    if with_usage:
        made.usage = None
    return made
