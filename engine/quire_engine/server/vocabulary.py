"""Hands the model's tokens to the engine, once there is a request for an answer of a form."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from quire_engine.sampling_params import SamplingParams
from quire_engine.server.engine_client import EngineClient
from quire_engine.structured.vocabulary import written_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class VocabularyLesson:
    """To be had before such a request is submitted; the first one waits for it, and others that come meanwhile."""

    def __init__(self, client: EngineClient, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
        self._client, self._tokenizer, self._vocab_size = client, tokenizer, vocab_size
        self._given: asyncio.Task[None] | None = None

    async def before(self, params: Iterable[SamplingParams]) -> None:
        """Return once the engine can compile what these ask for."""
        if all(own.structured_outputs is None for own in params):
            return
        if self._given is None:
            self._given = asyncio.create_task(self._give())
        await asyncio.shield(self._given)  # a client that leaves takes it from nobody else

    async def _give(self) -> None:
        try:
            vocabulary = await asyncio.to_thread(written_vocabulary, self._tokenizer, self._vocab_size)
        except ValueError:
            return  # the engine comes to the same and refuses the request, in words that its field's name is put into
        self._client.teach(vocabulary)
