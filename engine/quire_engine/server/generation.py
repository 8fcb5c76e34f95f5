"""From prompt tokens to pieces of text: the one path under every generating endpoint."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quire_engine.core.images import PromptImage
from quire_engine.core.messages import BeamAnswer, EngineOutput, EngineRequest, FinishReason
from quire_engine.core.step import TokenLogprobs
from quire_engine.sampling_params import SamplingParams
from quire_engine.server.adapters import Adapters
from quire_engine.server.engine_client import EngineClient
from quire_engine.server.errors import ApiError, refused
from quire_engine.server.mailbox import Mailbox
from quire_engine.server.metrics import Answers, Metrics, RequestTimes
from quire_engine.server.request_log import RequestLog
from quire_engine.server.tracing.facts import note_end
from quire_engine.server.vocabulary import VocabularyLesson
from quire_engine.text.detokenizer import IncrementalDetokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Piece:
    """What has become of one of a request's sequences since its last piece."""

    index: int  # of the sequence: `num_answers` for the first prompt, then those of the next
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int = 0
    logprobs: list[TokenLogprobs] | None = None  # of `token_ids`
    prompt_logprobs: list[TokenLogprobs] | None = None  # of the next ones of the prompt, from its second token on


@dataclass
class _Sequence:
    index: int
    request: EngineRequest
    detokenizer: IncrementalDetokenizer
    times: RequestTimes
    ended: bool = False


class Generation:
    """Runs requests on the engine and turns their tokens into text."""

    def __init__(
        self,
        client: EngineClient,
        tokenizer: PreTrainedTokenizerBase,
        metrics: Metrics,
        requests: RequestLog,
        lesson: VocabularyLesson,
        adapters: Adapters,
    ) -> None:
        self._client, self._tokenizer, self._metrics, self._log = client, tokenizer, metrics, requests
        self._lesson, self._adapters = lesson, adapters

    async def run(
        self,
        prompts: list[list[int]],
        params: list[SamplingParams],
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        images: tuple[PromptImage, ...] = (),
        model: str | None = None,
        counts_tokens: bool = True,
    ) -> AsyncGenerator[Piece]:
        """Yield pieces as they come, of `num_answers` for each prompt, until each has a finish reason.

        `params` has one entry a prompt, and `images` are in each. `model` may be an adapter's name. Without
        `counts_tokens` the prompts alone count, for whoever drops the answers. Closing the iterator early frees the
        pages. Raises `ApiError` for what the engine refuses and when the engine is gone.
        """
        sequences: dict[str, _Sequence] = {}
        first = 0
        adapter = self._adapters.choice(model)
        for prompt, own in zip(prompts, params, strict=True):
            eldest = EngineRequest(
                "", prompt, own, time.monotonic(), priority, cache_salt, images=images, adapter=adapter
            )
            self._add_sequences(sequences, first, eldest, counts_tokens)
            first += own.num_answers
        mailbox = Mailbox()
        await self._lesson.before(params)
        self._client.submit([s.request for s in sequences.values()], mailbox)
        for own in params:
            self._metrics.observe_submitted(own)
        unfinished, cut_off = len(sequences), "abort"
        try:
            while unfinished:
                for output in await mailbox.take():
                    sequence = sequences[output.request_id]
                    if sequence.ended:
                        continue  # a stop string ended it; this was on its way
                    pieces = self._advance(sequence, output)
                    unfinished -= sequence.ended
                    for piece in pieces:
                        if piece.text or piece.token_ids or piece.finish_reason or piece.prompt_logprobs:
                            yield piece
        except ApiError:
            cut_off = "error"
            raise
        finally:
            left = [s for s in sequences.values() if not s.ended]
            self._client.abort([s.request.request_id for s in left])
            for sequence in left:
                self._end(sequence.times, cut_off, time.monotonic())

    def _add_sequences(
        self,
        into: dict[str, _Sequence],
        first: int,
        asked: EngineRequest,
        counts_tokens: bool,
    ) -> None:
        """Number the answers to a prompt from `first` on. `asked` is all of them in one."""
        parent, prompt, arrival = uuid.uuid4().hex, asked.prompt_token_ids, asked.arrival_time
        children, answers = asked.params.children(), Answers(asked.params.num_answers)
        eldest = replace(asked, request_id=f"{parent}-0", params=children[0])
        for child, own in enumerate(children):
            request = eldest.another(f"{parent}-{child}", own) if child else eldest
            detokenizer = IncrementalDetokenizer(self._tokenizer, prompt, own)
            times = RequestTimes(
                arrival, len(prompt), own, first_of_prompt=child == 0, counts_tokens=counts_tokens, answers=answers
            )
            into[request.request_id] = _Sequence(first + child, request, detokenizer, times)

    def _advance(self, sequence: _Sequence, output: EngineOutput) -> list[Piece]:
        if output.finish_reason == "error":
            self._metrics.observe_refused(output)
            raise refused(output)
        now = time.monotonic()
        self._metrics.observe_output(sequence.times, output)
        if output.beams is not None:
            sequence.ended = True
            return self._beams(sequence, output.beams, output.num_cached_tokens, now)
        self._metrics.observe_tokens(sequence.times, len(output.new_token_ids), now)
        text, stop = sequence.detokenizer.update(
            output.new_token_ids, output.finish_reason is not None, ended_by_token=output.ended_by_token
        )
        reason, stop_reason = output.finish_reason, output.stop_reason
        if stop is not None:
            if reason is None:
                self._client.abort([output.request_id])
            reason, stop_reason = "stop", stop
        if reason is not None:
            sequence.ended = True
            self._end(sequence.times, reason, now)
        piece = Piece(
            sequence.index,
            text,
            output.new_token_ids,
            reason,
            stop_reason,
            output.num_cached_tokens,
            output.logprobs,
            output.prompt_logprobs,
        )
        return [piece]

    def _beams(self, sequence: _Sequence, beams: list[BeamAnswer], num_cached_tokens: int, now: float) -> list[Piece]:
        """The answers of a beam search, which are whole and counted as so many sequences."""
        request, pieces = sequence.request, []
        for i, beam in enumerate(beams):
            times = replace(sequence.times, first_of_prompt=i == 0)
            self._metrics.observe_tokens(times, len(beam.token_ids), now)
            detokenizer = IncrementalDetokenizer(self._tokenizer, request.prompt_token_ids, request.params)
            text, stop = detokenizer.update(beam.token_ids, True, ended_by_token=beam.ended_by_token)
            reason: FinishReason = beam.finish_reason if stop is None else "stop"
            self._end(times, reason, now)
            stop_reason = stop or beam.stop_reason
            pieces.append(Piece(sequence.index + i, text, beam.token_ids, reason, stop_reason, num_cached_tokens))
        return pieces

    def _end(self, times: RequestTimes, reason: str, now: float) -> None:
        self._metrics.observe_finished(times, reason, now)
        self._log.ended(times, reason, now)
        note_end(times, now)
