"""POST /v1/completions."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from quire_engine.core.messages import FinishReason
from quire_engine.core.step import TokenLogprobs
from quire_engine.server.generation import Generation, Piece
from quire_engine.server.logprobs import CompletionLogprobsWriter, prompt_logprobs
from quire_engine.server.parameters import Parameters
from quire_engine.server.prompts import Prompts
from quire_engine.server.protocol.completions import CompletionChoice, CompletionRequest, CompletionResponse
from quire_engine.server.request_ids import answer_id
from quire_engine.server.sequences import Answers, TokenCount, WholeText, collect
from quire_engine.server.streaming import DONE, event, large_event
from quire_engine.server.tracing.facts import note_start
from quire_engine.text.token_bytes import TokenBytes

DEFAULT_MAX_TOKENS = 16  # OpenAI's for completions


@dataclass
class _Started:
    """A request on its way. `texts` are its prompts', where they are echoed."""

    request: CompletionRequest
    prompts: list[list[int]]
    texts: list[str]
    pieces: AsyncGenerator[Piece]
    count: TokenCount

    def echo(self, prompt: int) -> str:
        return self.texts[prompt] if self.request.echo else ""


class Completions:
    """Answers completion requests. Each of several prompts gives `n` choices, in their order."""

    def __init__(self, generation: Generation, prompts: Prompts, parameters: Parameters, tokens: TokenBytes) -> None:
        self._generation, self._prompts, self._parameters, self._tokens = generation, prompts, parameters, tokens

    async def complete(self, request: CompletionRequest, model: str) -> CompletionResponse:
        started = await self._start(request)
        n = request.n or 1
        answers = await collect(started.pieces, started.count, num_answers=request.num_answers, n=n)

        def choices() -> list[CompletionChoice]:
            return [
                self._choice(started, prompt, prompt * n + i, own, text)
                for prompt, own in enumerate(answers)
                for i, text in enumerate(own.texts)
            ]

        # There may be a hundred thousand logprobs, and other answers should not wait for them.
        made = await asyncio.to_thread(choices) if request.tells_logprobs else choices()
        return CompletionResponse(model=model, choices=made, usage=started.count.as_usage())

    async def stream(self, request: CompletionRequest, model: str) -> AsyncGenerator[bytes]:
        """Check the request, then return its events: what can be refused is refused before the answer begins."""
        return self._events(await self._start(request), model)

    async def _start(self, request: CompletionRequest) -> _Started:
        keep, side = request.truncate_prompt_tokens, request.truncation_side
        given = await self._prompts.from_completion(request.prompt, special=request.add_special_tokens)
        prompts = [self._prompts.truncated(ids, keep, side) for ids in given]
        asked = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        # The engine always makes a token, and of no tokens none is shown.
        rooms = [self._prompts.max_tokens(ids, max(1, asked), "max_tokens") for ids in prompts]
        params = await self._parameters.of(request, rooms)
        pieces = self._generation.run(
            prompts,
            params,
            priority=request.priority or 0,
            cache_salt=request.cache_salt,
            model=request.model,
            counts_tokens=request.max_tokens != 0,
        )
        if request.max_tokens == 0:
            pieces = _without_answers(pieces)
        texts = []
        if request.echo:
            texts = await asyncio.to_thread(self._prompts.texts, request.prompt if keep is None else prompts, prompts)
        count = TokenCount(sum(map(len, prompts)), request.num_answers)
        note_start(count, params[0])
        return _Started(request, prompts, texts, pieces, count)

    def _choice(
        self, started: _Started, prompt: int, index: int, answers: Answers, text: WholeText
    ) -> CompletionChoice:
        request = started.request
        choice = CompletionChoice(
            index=index,
            text=started.echo(prompt) + text.text,
            finish_reason=text.finish_reason,
            stop_reason=text.stop_reason,
        )
        if request.return_token_ids:
            choice.prompt_token_ids, choice.token_ids = started.prompts[prompt], text.token_ids
        if request.logprobs is not None:
            writer = self._writer(started, prompt)
            if request.echo:
                of_prompt = _cut(answers.prompt_logprobs, request.logprobs)
                choice.logprobs = writer.write([*of_prompt, *text.logprobs], started.prompts[prompt][0])
            else:
                choice.logprobs = writer.write(text.logprobs)
        if request.prompt_logprobs is not None:
            of_prompt = _cut(answers.prompt_logprobs, request.prompt_logprobs)
            choice.prompt_logprobs = prompt_logprobs(of_prompt, self._tokens)
        return choice

    def _writer(self, started: _Started, prompt: int) -> CompletionLogprobsWriter:
        return CompletionLogprobsWriter(
            self._tokens,
            with_special=not started.request.skip_special_tokens,
            echoed=started.texts[prompt] if started.request.echo else None,
            by_id=started.request.shows_token_ids,
        )

    async def _events(self, started: _Started, model: str) -> AsyncGenerator[bytes]:
        request, count = started.request, started.count
        identity, created = answer_id("cmpl"), int(time.time())
        streamed: dict[int, _Streamed] = {}

        def chunk(choices: list[CompletionChoice]) -> CompletionResponse:
            made = CompletionResponse(
                id=identity, object="text_completion", created=created, model=model, choices=choices
            )
            if request.streams_usage:
                made.usage = count.as_usage() if not choices or request.streams_usage_so_far else None
            return made

        def first_event(prompt: int, so_far: _Streamed, piece: Piece) -> bytes:
            return large_event(chunk([_next_choice(started, prompt, so_far, piece)]))

        async with contextlib.aclosing(started.pieces):
            async for piece in started.pieces:
                count.add(piece)
                prompt = piece.index // request.num_answers
                if piece.index not in streamed:
                    streamed[piece.index] = _Streamed(self._writer(started, prompt))
                so_far = streamed[piece.index]
                so_far.of_prompt += piece.prompt_logprobs or []
                if not (piece.text or piece.token_ids or piece.finish_reason):
                    continue
                if so_far.of_prompt:  # there may be a hundred thousand
                    yield await asyncio.to_thread(first_event, prompt, so_far, piece)
                else:
                    yield event(chunk([_next_choice(started, prompt, so_far, piece)]))
        if request.streams_usage:
            yield event(chunk([]))
        yield DONE


@dataclass
class _Streamed:
    """A choice of which some has been sent. `of_prompt` has not, and goes with the first piece."""

    writer: CompletionLogprobsWriter
    of_prompt: list[TokenLogprobs] = field(default_factory=list)
    begun: bool = False


def _next_choice(started: _Started, prompt: int, so_far: _Streamed, piece: Piece) -> CompletionChoice:
    """What to send of a choice; an echo comes with its first piece."""
    request = started.request
    first, so_far.begun = not so_far.begun, True
    echoes = request.echo and first
    choice = CompletionChoice(
        index=piece.index,
        text=(started.echo(prompt) if echoes else "") + piece.text,
        logprobs=None,
        finish_reason=piece.finish_reason,
        stop_reason=piece.stop_reason,
    )
    if request.return_token_ids:
        choice.token_ids = piece.token_ids
        if first:
            choice.prompt_token_ids = started.prompts[prompt]
    if request.logprobs is not None:
        entries = [*so_far.of_prompt, *(piece.logprobs or [])]
        choice.logprobs = so_far.writer.write(entries, started.prompts[prompt][0] if echoes else None)
        so_far.of_prompt = []
    return choice


async def _without_answers(pieces: AsyncGenerator[Piece]) -> AsyncGenerator[Piece]:
    """Only what the pieces tell of their prompts."""
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            reason: FinishReason | None = "length" if piece.finish_reason else None
            yield Piece(
                piece.index,
                "",
                [],
                reason,
                num_cached_tokens=piece.num_cached_tokens,
                prompt_logprobs=piece.prompt_logprobs,
            )


def _cut(entries: list[TokenLogprobs], count: int) -> list[TokenLogprobs]:
    """`entries` with `count` of the likeliest tokens, where more were computed for another field."""
    return [TokenLogprobs(e.token_id, e.logprob, e.rank, e.top_ids[:count], e.top_logprobs[:count]) for e in entries]
