"""POST /score and /rerank: how near texts are to each other, by the angle between their vectors."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Sequence

from quire_engine.server.embeddings import Embeddings
from quire_engine.server.errors import ApiError
from quire_engine.server.protocol.embeddings import EmbeddingRequest
from quire_engine.server.protocol.scores import (
    Document,
    Ranked,
    RerankRequest,
    RerankResponse,
    Score,
    ScoreRequest,
    ScoreResponse,
)
from quire_engine.server.protocol.usage import Usage


class Scores:
    """Scores pairs of texts by the cosine of the angle between their vectors."""

    def __init__(self, embeddings: Embeddings) -> None:
        self._embeddings = embeddings

    async def score(self, request: ScoreRequest, model: str) -> ScoreResponse:
        """Raises `ApiError` as `Embeddings.vectors` does."""
        firsts, seconds = request.firsts, request.seconds
        scores, usage = await self._cosines(request, firsts, seconds, "text_1 or text_2")
        data = [Score(index=i, score=score) for i, score in enumerate(scores)]
        return ScoreResponse(model=model, data=data, usage=usage)

    async def rerank(self, request: RerankRequest, model: str) -> RerankResponse:
        """The documents that are nearest to the query, the nearest first. Raises `ApiError` as `score` does."""
        texts = request.texts
        scores, usage = await self._cosines(request, [request.query], texts, "query or documents")
        places = sorted(range(len(texts)), key=lambda place: -scores[place])[: request.top_n or len(texts)]
        results = [Ranked(index=i, document=Document(text=texts[i]), relevance_score=scores[i]) for i in places]
        return RerankResponse(model=model, usage=usage, results=results)

    async def _cosines(
        self, request: ScoreRequest | RerankRequest, firsts: Sequence[str], seconds: Sequence[str], fields: str
    ) -> tuple[list[float], Usage]:
        """The cosine of each of `seconds` with the first of its place, or with the only one."""
        asked = EmbeddingRequest(
            input=[*firsts, *seconds],
            normalize=True,
            truncate_prompt_tokens=request.truncate_prompt_tokens,
            priority=request.priority,
            cache_salt=request.cache_salt,
        )
        try:
            vectors, usage = await self._embeddings.vectors(asked)
        except ApiError as error:
            message = error.message.replace("input", fields, 1)
            raise ApiError(error.status, message, param=None, headers=error.headers) from error
        of_firsts = vectors[: len(firsts)] * (len(seconds) // len(firsts))
        pairs = zip(of_firsts, vectors[len(firsts) :], strict=True)
        # There may be millions of numbers, and other answers should not wait for them.
        return await asyncio.to_thread(lambda: [sum(map(operator.mul, a, b)) for a, b in pairs]), usage
