"""The endpoints of models that make vectors."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from quire_engine.server.json_answer import json_answer
from quire_engine.server.protocol.embeddings import EmbeddingRequest, EmbeddingResponse
from quire_engine.server.protocol.scores import RerankRequest, RerankResponse, ScoreRequest, ScoreResponse
from quire_engine.server.routes.bodies import json_router
from quire_engine.server.service import Service
from quire_engine.server.streaming import unless_client_leaves


def vector_router(service: Service) -> APIRouter:
    router = json_router()

    @router.post("/v1/embeddings", response_model=EmbeddingResponse)
    async def create_embedding(request: Request, body: EmbeddingRequest) -> Response:
        name = service.checked_model(body.model)
        embeddings = service.of_vectors(service.embeddings)
        service.check_queue()
        return await json_answer(unless_client_leaves(request, embeddings.embed(body, name)))

    @router.post("/score", response_model=ScoreResponse)
    @router.post("/v1/score", response_model=ScoreResponse)
    async def create_score(request: Request, body: ScoreRequest) -> Response:
        name = service.checked_model(body.model)
        scores = service.of_vectors(service.scores)
        service.check_queue()
        return await json_answer(unless_client_leaves(request, scores.score(body, name)))

    @router.post("/rerank", response_model=RerankResponse)
    @router.post("/v1/rerank", response_model=RerankResponse)
    @router.post("/v2/rerank", response_model=RerankResponse)
    async def rerank(request: Request, body: RerankRequest) -> Response:
        name = service.checked_model(body.model)
        scores = service.of_vectors(service.scores)
        service.check_queue()
        return await json_answer(unless_client_leaves(request, scores.rerank(body, name)))

    return router
