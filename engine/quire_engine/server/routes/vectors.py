"""The endpoints of models that make vectors."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from quire_engine.server.errors import ApiError
from quire_engine.server.json_answer import json_answer
from quire_engine.server.protocol.embeddings import EmbeddingRequest, EmbeddingResponse
from quire_engine.server.routes.bodies import json_router
from quire_engine.server.service import Service
from quire_engine.server.streaming import unless_client_leaves


def vector_router(service: Service) -> APIRouter:
    router = json_router()

    @router.post("/v1/embeddings", response_model=EmbeddingResponse)
    async def create_embedding(request: Request, body: EmbeddingRequest) -> Response:
        name = service.checked_model(body.model)
        if service.embeddings is None:
            raise ApiError(
                400,
                f"{name} generates text and makes no embeddings: use /v1/chat/completions or /v1/completions, "
                "or start the server with --task embed",
            )
        service.check_queue()
        return await json_answer(unless_client_leaves(request, service.embeddings.embed(body, name)))

    return router
