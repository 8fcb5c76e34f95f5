"""The endpoints that load and unload adapters."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from quire_engine.server.protocol.adapters import LoadAdapterRequest, UnloadAdapterRequest
from quire_engine.server.protocol.errors import ErrorBody
from quire_engine.server.routes.bodies import json_router
from quire_engine.server.service import Service


def adapter_router(service: Service) -> APIRouter:
    router = json_router()
    answers: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "what was done, in words"},
        403: {"model": ErrorBody, "description": "the server does not allow it"},
    }

    @router.post("/v1/load_lora_adapter", response_class=Response, responses=answers)
    async def load(body: LoadAdapterRequest) -> PlainTextResponse:
        return PlainTextResponse(await service.adapters.load(body))

    @router.post("/v1/unload_lora_adapter", response_class=Response, responses=answers)
    async def unload(body: UnloadAdapterRequest) -> PlainTextResponse:
        return PlainTextResponse(await service.adapters.unload(body))

    return router
