"""POST /v1/completions."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator

from quire_engine.server.generation import Generation, Piece
from quire_engine.server.prompts import Prompts
from quire_engine.server.protocol import CompletionChoice, CompletionRequest, CompletionResponse
from quire_engine.server.sequences import TokenCount, checked_params, collect
from quire_engine.server.streaming import DONE, event

DEFAULT_MAX_TOKENS = 16  # OpenAI's for completions


class Completions:
    """Answers completion requests. Each of several prompts gives `n` choices, in their order."""

    def __init__(self, generation: Generation, prompts: Prompts) -> None:
        self._generation, self._prompts = generation, prompts

    async def complete(self, request: CompletionRequest, model: str) -> CompletionResponse:
        pieces, count = await self._start(request)
        choices = [
            CompletionChoice(index=i, text=t.text, finish_reason=t.finish_reason, stop_reason=t.stop_reason)
            for i, t in enumerate(await collect(pieces, count))
        ]
        return CompletionResponse(model=model, choices=choices, usage=count.as_usage())

    async def stream(self, request: CompletionRequest, model: str) -> AsyncGenerator[bytes]:
        """Check the request, then return its events: what can be refused is refused before the answer begins."""
        pieces, count = await self._start(request)
        return _events(request, model, pieces, count)

    async def _start(self, request: CompletionRequest) -> tuple[AsyncGenerator[Piece], TokenCount]:
        self._prompts.check_ids(request.stop_token_ids or [], "stop_token_ids")
        prompts = await self._prompts.from_completion(request.prompt)
        asked = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        params = [checked_params(request, self._prompts.max_tokens(ids, asked, "max_tokens")) for ids in prompts]
        return self._generation.run(prompts, params), TokenCount(sum(map(len, prompts)))


async def _events(
    request: CompletionRequest, model: str, pieces: AsyncGenerator[Piece], count: TokenCount
) -> AsyncGenerator[bytes]:
    identity, created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
    with_usage = request.stream_options is not None and request.stream_options.include_usage

    def chunk(choices: list[CompletionChoice]) -> CompletionResponse:
        made = CompletionResponse(id=identity, object="text_completion", created=created, model=model, choices=choices)
        if with_usage:
            made.usage = None if choices else count.as_usage()
        return made

    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            count.add(piece)
            choice = CompletionChoice(
                index=piece.index,
                text=piece.text,
                logprobs=None,
                finish_reason=piece.finish_reason,
                stop_reason=piece.stop_reason,
            )
            yield event(chunk([choice]))
    if with_usage:
        yield event(chunk([]))
    yield DONE
