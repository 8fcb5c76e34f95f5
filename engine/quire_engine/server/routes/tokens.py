"""The endpoints that turn texts into tokens and back."""

from __future__ import annotations

from fastapi import APIRouter, Response

from quire_engine.server.json_answer import json_answer
from quire_engine.server.protocol.tokenization import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from quire_engine.server.routes.bodies import json_router
from quire_engine.server.service import Service


def token_router(service: Service) -> APIRouter:
    router = json_router()

    @router.post("/tokenize", response_model=TokenizeResponse)
    async def tokenize(body: TokenizeRequest) -> Response:
        service.checked_model(body.model)
        assert service.tokenization is not None  # nobody is let in before
        return await json_answer(service.tokenization.tokenize(body))

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> DetokenizeResponse:
        service.checked_model(body.model)
        assert service.tokenization is not None
        return await service.tokenization.detokenize(body)

    return router
