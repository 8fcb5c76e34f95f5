"""The server itself: its health, its numbers, its models."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from quire_engine import __version__
from quire_engine.server.chat_page import chat_page
from quire_engine.server.protocol.models import ModelCard, ModelList
from quire_engine.server.protocol.status import Health, Load, Version
from quire_engine.server.routes.bodies import ERRORS
from quire_engine.server.service import Service


def status_router(service: Service) -> APIRouter:
    router = APIRouter()
    if service.settings.ui:
        page = chat_page()

        @router.get("/", include_in_schema=False)
        async def root() -> Response:
            return page

    @router.get("/health", response_model=Health, responses={503: {"model": Health, "description": "and why"}})
    @router.post("/ping", include_in_schema=False)  # as SageMaker's and vLLM's clients may ask
    @router.get("/ping", response_model=Health, responses={503: {"model": Health, "description": "and why"}})
    async def health() -> JSONResponse:
        status, reason = service.health()
        return JSONResponse({"status": reason}, status)

    @router.get("/metrics/", include_in_schema=False)
    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        service.metrics.observe_stats(service.client.stats)
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/version")
    async def version() -> Version:
        return Version(version=__version__)

    @router.get("/load")
    async def load() -> Load:
        return Load(server_load=service.lifecycle.in_flight)

    @router.get("/v1/models", responses=ERRORS)
    async def models() -> ModelList:
        return ModelList(data=[*service.cards, *service.adapters.cards.values()])

    @router.get("/v1/models/{name:path}", responses=ERRORS)
    async def model(name: str) -> ModelCard:
        served = service.checked_model(name)
        return next(card for card in (*service.cards, *service.adapters.cards.values()) if card.id == served)

    return router
