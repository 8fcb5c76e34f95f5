"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
import struct
import time
import uuid
from typing import TYPE_CHECKING

from quire_engine.core.messages import EngineRequest
from quire_engine.core.pooling import Pooling, PoolingParams
from quire_engine.sampling_params import SamplingParams
from quire_engine.server.engine_client import EngineClient
from quire_engine.server.errors import ApiError, refused
from quire_engine.server.mailbox import Mailbox
from quire_engine.server.metrics import Metrics, RequestTimes
from quire_engine.server.prompts import Prompts
from quire_engine.server.protocol.embeddings import EmbeddingData, EmbeddingRequest, EmbeddingResponse
from quire_engine.server.protocol.usage import Usage
from quire_engine.server.sequences import TokenCount
from quire_engine.server.tracing.facts import note_end, note_start
from quire_engine.startup_error import StartupError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Inputs:
    """From an embedding request's input to prompts that fit the model."""

    def __init__(self, prompts: Prompts, tokenizer: PreTrainedTokenizerBase, max_model_len: int) -> None:
        self._prompts, self._longest = prompts, max_model_len
        # What the tokenizer puts around a text has to stay when the text is cut.
        whole = list(tokenizer.encode("a"))
        text = list(tokenizer.encode("a", add_special_tokens=False))
        first = next((i for i in range(len(whole) + 1) if whole[i : i + len(text)] == text), None)
        if first is None:
            raise StartupError(
                "InvalidTokenizer",
                f"the tokenizer makes {text} of a text alone and {whole} of the same with special tokens: what it puts "
                "around a text cannot be told, use another with --tokenizer",
            )
        self._num_before, self._num_after = first, len(whole) - first - len(text)

    async def token_ids(self, request: EmbeddingRequest) -> list[list[int]]:
        """Raises `ApiError` for an input that is empty, foreign or too long."""
        keep = request.truncate_prompt_tokens
        if keep == 0:
            raise ApiError(
                400, "truncate_prompt_tokens is 0: it must be at least 1, or -1", param="truncate_prompt_tokens"
            )
        prompts = await self._prompts.from_completion(request.input, field="input")
        texts = isinstance(request.input, str) or isinstance(request.input[0], str)
        if keep is not None:
            keep = self._longest if keep == -1 else keep
            prompts = [self._cut(ids, keep) if texts else ids[:keep] for ids in prompts]
        for ids in prompts:
            if len(ids) > self._longest:
                raise ApiError(
                    400,
                    f"This model's maximum context length is {self._longest} tokens. However, input has {len(ids)} "
                    "tokens: shorten it, or set truncate_prompt_tokens to -1",
                    param="input",
                )
        return prompts

    def _cut(self, ids: list[int], keep: int) -> list[int]:
        """The first tokens of a text, with what the tokenizer puts around it: `keep` of them together."""
        if len(ids) <= keep:
            return ids
        after = ids[len(ids) - self._num_after :] if keep > self._num_before + self._num_after else []
        return ids[: keep - len(after)] + after


class Embeddings:
    """Answers embedding requests: one vector for each input, in their order."""

    def __init__(self, client: EngineClient, inputs: Inputs, metrics: Metrics, pooling: Pooling) -> None:
        self._client, self._inputs, self._metrics, self._pooling = client, inputs, metrics, pooling

    async def embed(self, request: EmbeddingRequest, model: str) -> EmbeddingResponse:
        """Raises `ApiError` as `vectors` does."""
        vectors, usage = await self.vectors(request)
        encode = _as_base64 if request.encoding_format == "base64" else list

        def answer() -> EmbeddingResponse:
            data = [EmbeddingData(index=i, embedding=encode(vector)) for i, vector in enumerate(vectors)]
            return EmbeddingResponse(model=model, data=data, usage=usage)

        # There may be millions of numbers, and other answers should not wait for them.
        return await asyncio.to_thread(answer) if len(vectors) > 1 else answer()

    async def vectors(self, request: EmbeddingRequest) -> tuple[list[list[float]], Usage]:
        """The vectors of a request's inputs, and what they cost.

        Raises `ApiError` for what the model or the engine refuses, and when the engine is gone.
        """
        if request.dimensions is not None:
            try:
                self._pooling.check_dimensions(request.dimensions)
            except ValueError as error:
                raise ApiError(400, str(error), param="dimensions") from error
        if request.priority and self._client.config.scheduling_policy != "priority":
            raise ApiError(
                400,
                f"priority is {request.priority} and requests run in the order in which they come: leave it out, or "
                "start the server with --scheduling-policy priority",
                param="priority",
            )
        prompts = await self._inputs.token_ids(request)
        params = PoolingParams(request.dimensions, request.normalize)
        count = sum(map(len, prompts))
        note_start(TokenCount(count, 1), None)
        vectors = await self._run(prompts, params, request.priority or 0, request.cache_salt)
        return vectors, Usage(prompt_tokens=count, total_tokens=count)

    async def _run(
        self, prompts: list[list[int]], params: PoolingParams, priority: int, cache_salt: str | None
    ) -> list[list[float]]:
        parent, arrival = uuid.uuid4().hex, time.monotonic()
        requests = [
            EngineRequest(f"{parent}-{i}", ids, SamplingParams(), arrival, priority, cache_salt, params)
            for i, ids in enumerate(prompts)
        ]
        left = {r.request_id: RequestTimes(arrival, len(r.prompt_token_ids), SamplingParams()) for r in requests}
        vectors: dict[str, list[float]] = {}
        mailbox, cut_off = Mailbox(), "abort"
        self._client.submit(requests, mailbox)
        try:
            while left:
                for output in await mailbox.take():
                    if output.embedding is None:
                        self._metrics.observe_refused(output)
                        raise refused(output, param="input")
                    times = left.pop(output.request_id)
                    vectors[output.request_id] = output.embedding
                    self._metrics.observe_output(times, output)
                    now = time.monotonic()
                    self._metrics.observe_embedded(times, now)
                    note_end(times, now)
        except ApiError:
            cut_off = "error"
            raise
        finally:
            self._client.abort([*left])
            for times in left.values():
                now = time.monotonic()
                self._metrics.observe_finished(times, cut_off, now)
                note_end(times, now)
        return [vectors[request.request_id] for request in requests]


def _as_base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
