"""POST /v1/chat/completions."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator

from quire_engine.server.generation import Generation, Piece
from quire_engine.server.prompts import Prompts
from quire_engine.server.protocol import (
    ChatAnswer,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatDelta,
)
from quire_engine.server.sequences import TokenCount, checked_params, collect
from quire_engine.server.streaming import DONE, event


class Chat:
    """Answers chat requests with `n` choices each."""

    def __init__(self, generation: Generation, prompts: Prompts, response_role: str = "assistant") -> None:
        self._generation, self._prompts, self._role = generation, prompts, response_role

    async def complete(self, request: ChatCompletionRequest, model: str) -> ChatCompletionResponse:
        pieces, count = await self._start(request)
        choices = [
            ChatChoice(
                index=i,
                message=ChatAnswer(role=self._role, content=t.text),
                finish_reason=t.finish_reason,
                stop_reason=t.stop_reason,
            )
            for i, t in enumerate(await collect(pieces, count))
        ]
        return ChatCompletionResponse(model=model, choices=choices, usage=count.as_usage())

    async def stream(self, request: ChatCompletionRequest, model: str) -> AsyncGenerator[bytes]:
        """Check the request, then return its events: what can be refused is refused before the answer begins."""
        pieces, count = await self._start(request)
        return self._events(request, model, pieces, count)

    async def _start(self, request: ChatCompletionRequest) -> tuple[AsyncGenerator[Piece], TokenCount]:
        self._prompts.check_ids(request.stop_token_ids or [], "stop_token_ids")
        messages = [m.as_template_input() for m in request.messages]
        ids = await self._prompts.from_chat(messages, request.add_generation_prompt, request.chat_template_kwargs)
        newer = request.max_completion_tokens is not None
        asked = request.max_completion_tokens if newer else request.max_tokens
        room = self._prompts.max_tokens(ids, asked, "max_completion_tokens" if newer else "max_tokens")
        return self._generation.run([ids], [checked_params(request, room)]), TokenCount(len(ids))

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
