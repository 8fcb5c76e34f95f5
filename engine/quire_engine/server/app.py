"""The application: routes, errors, and the middleware around them."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from quire_engine import __version__
from quire_engine.server.errors import (
    CLIENT_CLOSED_REQUEST,
    ApiError,
    error_body,
    on_api_error,
    on_http_exception,
    on_validation_error,
)
from quire_engine.server.front import Front
from quire_engine.server.gate import Gate
from quire_engine.server.routes.adapters import adapter_router
from quire_engine.server.routes.status import status_router
from quire_engine.server.routes.text import text_router
from quire_engine.server.routes.tokens import token_router
from quire_engine.server.routes.vectors import vector_router
from quire_engine.server.service import Service
from quire_engine.server.streaming import ClientGoneError
from quire_engine.server.tracing.middleware import Traced


def create_app(service: Service) -> ASGIApp:
    """What comes first is outside: front, the browser's questions, the gate, the routes."""
    app = FastAPI(title="Quire", version=__version__, docs_url=None, redoc_url=None)
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(ClientGoneError, _on_client_gone)
    app.add_exception_handler(Exception, _on_unexpected)
    for router in (status_router, text_router, vector_router, token_router, adapter_router):
        app.include_router(router(service))
    settings = service.settings
    # Within the gate: strangers should not be able to fill the traces.
    routes = app if service.spans is None else Traced(app, service.spans.send)
    gate = Gate(routes, service.lifecycle, service.keys, service.starting)
    # Outside the gate: a browser asks before it sends a key, and lets a page read only what allows it to.
    cors = CORSMiddleware(
        gate,
        allow_origins=settings.allowed_origins,
        allow_methods=settings.allowed_methods,
        allow_headers=settings.allowed_headers,
        allow_credentials=settings.allow_credentials,
        expose_headers=("X-Request-Id", "Retry-After"),
    )
    return Front(
        cors,
        service.lifecycle,
        service.metrics.observe_http,
        root_path=settings.root_path,
        tells_ids=settings.enable_request_id_headers,
    )


async def _on_client_gone(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse({}, CLIENT_CLOSED_REQUEST)


async def _on_unexpected(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse(error_body(500, f"this is a fault of the server: {type(error).__name__}"), 500)
