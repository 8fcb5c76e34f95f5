"""The endpoints of models that generate text."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from quire_engine.server.json_answer import json_answer
from quire_engine.server.protocol.chat import ChatCompletionRequest, ChatCompletionResponse
from quire_engine.server.protocol.completions import CompletionRequest, CompletionResponse
from quire_engine.server.protocol.responses import ResponseObject, ResponsesRequest
from quire_engine.server.routes.bodies import json_router
from quire_engine.server.service import Service
from quire_engine.server.streaming import EventStream, unless_client_leaves


def text_router(service: Service) -> APIRouter:
    router = json_router()

    @router.post("/v1/completions", response_model=CompletionResponse)
    async def create_completion(request: Request, body: CompletionRequest) -> Response:
        name = service.checked_model(body.model)
        completions = service.of_text(service.completions)
        service.check_queue()
        if body.stream:
            return EventStream(await completions.stream(body, name))
        return await json_answer(unless_client_leaves(request, completions.complete(body, name)))

    @router.post("/v1/chat/completions", response_model=ChatCompletionResponse)
    async def create_chat_completion(request: Request, body: ChatCompletionRequest) -> Response:
        name = service.checked_model(body.model)
        chat = service.of_text(service.chat)
        service.check_queue()
        if body.stream:
            return EventStream(await chat.stream(body, name))
        return await json_answer(unless_client_leaves(request, chat.complete(body, name)))

    @router.post("/v1/responses", response_model=ResponseObject)
    async def create_response(request: Request, body: ResponsesRequest) -> Response:
        name = service.checked_model(body.model)
        responses = service.of_text(service.responses)
        service.check_queue()
        if body.stream:
            return EventStream(await responses.stream(body, name))
        return await json_answer(unless_client_leaves(request, responses.complete(body, name)))

    return router
