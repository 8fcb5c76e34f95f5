"""From a request's fields to sampling parameters, within the limits that model and engine set."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from quire_engine.core.grammar import BusyError
from quire_engine.sampling_params import SamplingParams
from quire_engine.server.errors import ApiError
from quire_engine.server.forms import Form
from quire_engine.server.protocol.generation import GenerationRequest
from quire_engine.structured.compiler import Compilation, GrammarCompiler
from quire_engine.structured.vocabulary import byte_vocabulary
from quire_engine.text.bad_words import with_bad_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Parameters:
    """Makes the sampling parameters of requests to one model."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        *,
        use_priority: bool,
        defaults: Mapping[str, int | float],
    ) -> None:
        """`defaults` are sampling parameters of requests that leave them out."""
        self._tokenizer, self._vocab_size, self._use_priority = tokenizer, vocab_size, use_priority
        self._defaults = defaults
        # The engine compiles for the model's tokens: for bytes it shows as well whether a grammar can be used.
        self._grammars = GrammarCompiler(byte_vocabulary)

    async def of(self, request: GenerationRequest, rooms: list[int]) -> list[SamplingParams]:
        """The parameters for each prompt of a request, which may have `rooms[i]` tokens generated.

        Raises `ApiError` that names the field which is out of range.
        """
        if request.priority and not self._use_priority:
            raise ApiError(
                400,
                f"priority is {request.priority} and requests run in the order in which they come: leave it out, or "
                "start the server with --scheduling-policy priority",
                param="priority",
            )
        self._check_ids("stop_token_ids", request.stop_token_ids or ())
        self._check_ids("logit_bias", request.logit_bias or ())
        self._check_ids("allowed_token_ids", request.allowed_token_ids or ())
        try:
            form = request.form()
            if form is not None:
                await self._check_form(form)
            params = request.sampling_params(max(rooms), form.wanted if form else None, self._defaults)
            if params.bad_words:
                params = await asyncio.to_thread(with_bad_words, params, self._tokenizer)
            return [replace(params, max_tokens=room) for room in rooms]
        except ValueError as error:
            raise ApiError(400, str(error), param=str(error).split(" ", 1)[0]) from error

    async def _check_form(self, form: Form) -> None:
        """Raise `ApiError` for a form that no answer can have, or that is beyond the limits."""
        try:
            compilation = self._grammars.submit(form.wanted)
            try:
                await _compiled(compilation)
            finally:
                compilation.leave()
        except BusyError as error:
            raise ApiError(429, str(error), headers={"retry-after": "1"}) from error
        except ValueError as error:
            raise ApiError(400, form.in_its_words(str(error)), param=form.field) from error

    def _check_ids(self, field: str, ids: Collection[int]) -> None:
        wrong = next((i for i in ids if not 0 <= i < self._vocab_size), None)
        if wrong is not None:
            raise ApiError(
                400, f"{field} holds token id {wrong}: this model's ids end at {self._vocab_size - 1}", param=field
            )


async def _compiled(compilation: Compilation) -> None:
    """Wait for it. Raises `ValueError` for a grammar that cannot be used, and `BusyError` where its turn is far off."""
    since, done, loop = time.monotonic(), asyncio.Event(), asyncio.get_running_loop()

    def end(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may have ended
            loop.call_soon_threadsafe(done.set)

    compilation.future.add_done_callback(end)
    # What is left is more again once its turn has come.
    while not compilation.future.done() and (left := compilation.seconds_left(since)) > 0:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), left)
    if not compilation.future.done():
        raise compilation.overdue()
    compilation.future.result()
