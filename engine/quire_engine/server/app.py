"""The routes. Everything they need hangs on one `Service`, which is complete once the engine is ready."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from quire_engine import __version__
from quire_engine.server.chat import Chat
from quire_engine.server.chat_page import chat_page
from quire_engine.server.completions import Completions
from quire_engine.server.embeddings import Embeddings
from quire_engine.server.engine_client import EngineClient
from quire_engine.server.errors import ApiError, error_body, on_api_error, on_http_exception, on_validation_error
from quire_engine.server.gate import Gate
from quire_engine.server.lifecycle import Lifecycle, State
from quire_engine.server.metrics import Metrics
from quire_engine.server.protocol.chat import ChatCompletionRequest
from quire_engine.server.protocol.completions import CompletionRequest
from quire_engine.server.protocol.embeddings import EmbeddingRequest
from quire_engine.server.protocol.models import ModelCard, ModelList
from quire_engine.server.protocol.tokenization import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from quire_engine.server.settings import ServerSettings
from quire_engine.server.streaming import ClientGoneError, EventStream, unless_client_leaves
from quire_engine.server.tokenization import Tokenization

_Part = TypeVar("_Part")
CLIENT_CLOSED_REQUEST = 499  # nginx's; nobody is there to read it, but the metrics count it


@dataclass
class Service:
    """What the routes work with.

    Once the tokenizer and the engine are there, `tokenization` is, and `completions` and `chat`, or `embeddings`, by
    what the model does.
    """

    settings: ServerSettings
    lifecycle: Lifecycle
    metrics: Metrics
    client: EngineClient
    model_names: tuple[str, ...]
    cards: list[ModelCard] = field(default_factory=list)
    completions: Completions | None = None
    chat: Chat | None = None
    embeddings: Embeddings | None = None
    tokenization: Tokenization | None = None

    def health(self) -> tuple[int, str]:
        """Status code and reason. 200 only while the engine gives signs of life and the server takes requests."""
        state = self.lifecycle.state
        if self.client.failure is not None:
            return 503, self.client.failure
        if state is State.STARTING:
            return 503, self.starting()
        if state is not State.SERVING:
            return 503, state.value
        silent = self.client.seconds_silent()
        if silent > self.settings.stall_timeout:
            return 503, f"stalled: no sign of the engine for {silent:.0f} s"
        return 200, "ok"

    def starting(self) -> str:
        return f"the model is being loaded (done last: {self.client.phase}): try again in some seconds"

    def checked_model(self, asked: str | None) -> str:
        """The name to answer with. Raises `ApiError` for a model that is not served here."""
        if not asked:
            return self.model_names[0]
        if asked not in self.model_names:
            served = ", ".join(self.model_names)
            raise ApiError(404, f"the model {asked!r} is not served here: use {served}", param="model")
        return asked

    def of_text(self, part: _Part | None) -> _Part:
        """Raises `ApiError` where the model generates no text."""
        if part is None:
            raise ApiError(400, f"{self.model_names[0]} makes embeddings and generates no text: use /v1/embeddings")
        return part

    def check_queue(self) -> None:
        """Raises `ApiError` 429 when as many requests wait as `--max-waiting` allows."""
        limit = self.settings.max_waiting
        # The engine's number is that of its last step: the requests of a burst have to be counted here.
        full = self.lifecycle.in_flight > self.client.config.max_num_seqs + limit
        if limit and (full or self.client.stats.num_waiting >= limit):
            raise ApiError(429, f"{limit} requests are waiting already: try again", headers={"retry-after": "1"})


def create_app(service: Service) -> ASGIApp:
    app = FastAPI(title="Quire", version=__version__, docs_url=None, redoc_url=None)
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(ClientGoneError, _on_client_gone)
    app.add_exception_handler(Exception, _on_unexpected)
    _add_status_routes(app, service)
    _add_generation_routes(app, service)
    _add_embedding_routes(app, service)
    _add_tokenization_routes(app, service)
    return Gate(app, service.lifecycle, service.settings.api_key, service.starting, service.metrics.observe_http)


def _add_status_routes(app: FastAPI, service: Service) -> None:
    if service.settings.ui:
        page = chat_page()

        @app.get("/", include_in_schema=False)
        async def root() -> Response:
            return page

    @app.get("/health")
    @app.get("/ping")
    async def health() -> JSONResponse:
        status, reason = service.health()
        return JSONResponse({"status": reason}, status)

    @app.get("/metrics")
    async def metrics() -> Response:
        service.metrics.observe_stats(service.client.stats)
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/load")
    async def load() -> dict[str, int]:
        return {"server_load": service.lifecycle.in_flight}

    @app.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=service.cards)

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> ModelCard:
        served = service.checked_model(name)
        return next(card for card in service.cards if card.id == served)


def _add_generation_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/completions")
    async def create_completion(request: Request, body: CompletionRequest) -> Response:
        name = service.checked_model(body.model)
        completions = service.of_text(service.completions)
        service.check_queue()
        if body.stream:
            return EventStream(await completions.stream(body, name))
        answer = await unless_client_leaves(request, completions.complete(body, name))
        return Response(answer.model_dump_json(), media_type="application/json")

    @app.post("/v1/chat/completions")
    async def create_chat_completion(request: Request, body: ChatCompletionRequest) -> Response:
        name = service.checked_model(body.model)
        chat = service.of_text(service.chat)
        service.check_queue()
        if body.stream:
            return EventStream(await chat.stream(body, name))
        answer = await unless_client_leaves(request, chat.complete(body, name))
        return Response(answer.model_dump_json(), media_type="application/json")


def _add_embedding_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/embeddings")
    async def create_embedding(request: Request, body: EmbeddingRequest) -> Response:
        name = service.checked_model(body.model)
        if service.embeddings is None:
            raise ApiError(
                400,
                f"{name} generates text and makes no embeddings: use /v1/chat/completions or /v1/completions, "
                "or start the server with --task embed",
            )
        service.check_queue()
        answer = await unless_client_leaves(request, service.embeddings.embed(body, name))
        return Response(answer.model_dump_json(), media_type="application/json")


def _add_tokenization_routes(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> TokenizeResponse:
        service.checked_model(body.model)
        assert service.tokenization is not None  # nobody is let in before
        return await service.tokenization.tokenize(body)

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> DetokenizeResponse:
        service.checked_model(body.model)
        assert service.tokenization is not None
        return await service.tokenization.detokenize(body)


async def _on_client_gone(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse({}, CLIENT_CLOSED_REQUEST)


async def _on_unexpected(_: Request, error: Exception) -> JSONResponse:
    body: dict[str, Any] = error_body(500, f"this is a fault of the server: {type(error).__name__}")
    return JSONResponse(body, 500)
