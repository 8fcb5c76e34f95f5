"""The endpoints of models that generate text."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from quire_engine.server.json_answer import json_answer
from quire_engine.server.protocol.chat import ChatCompletionRequest, ChatCompletionResponse
from quire_engine.server.protocol.completions import CompletionRequest, CompletionResponse
from quire_engine.server.protocol.responses import ResponseObject, ResponsesRequest
from quire_engine.server.routes.bodies import json_router
from quire_engine.server.service import Service
from quire_engine.server.streaming import EventStream, unless_client_leaves

_Body = TypeVar("_Body", CompletionRequest, ChatCompletionRequest, ResponsesRequest)
_Asked = TypeVar("_Asked", contravariant=True)


class _Endpoint(Protocol[_Asked]):
    """Answers requests of one kind, whole or as events."""

    async def complete(self, request: _Asked, model: str, /) -> BaseModel: ...

    async def stream(self, request: _Asked, model: str, /) -> AsyncGenerator[bytes]: ...


def text_router(service: Service) -> APIRouter:
    router = json_router()

    async def answer(request: Request, body: _Body, endpoint: _Endpoint[_Body] | None) -> Response:
        name = service.checked_model(body.model)
        asked = service.of_text(endpoint)
        service.check_queue()
        if body.stream:
            return EventStream(await asked.stream(body, name))
        return await json_answer(unless_client_leaves(request, asked.complete(body, name)))

    @router.post("/v1/completions", response_model=CompletionResponse)
    async def create_completion(request: Request, body: CompletionRequest) -> Response:
        return await answer(request, body, service.completions)

    @router.post("/v1/chat/completions", response_model=ChatCompletionResponse)
    async def create_chat_completion(request: Request, body: ChatCompletionRequest) -> Response:
        return await answer(request, body, service.chat)

    @router.post("/v1/responses", response_model=ResponseObject)
    async def create_response(request: Request, body: ResponsesRequest) -> Response:
        return await answer(request, body, service.responses)

    return router
