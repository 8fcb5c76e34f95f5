"""What the endpoints with a body have in common: JSON comes in, and errors have OpenAI's body."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request

from quire_engine.server.errors import ApiError
from quire_engine.server.protocol.errors import ErrorBody

_SAYS = {
    400: "a field is wrong: `param` says which, the message what to write instead",
    401: "the API key is missing or wrong",
    404: "the model is not served here",
    413: "the body is too large",
    415: "the body is not JSON by its header",
    429: "too many requests wait; `Retry-After` says when to come again",
    503: "the server starts or stops; `Retry-After` says when to come again",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    **{status: {"model": ErrorBody, "description": says} for status, says in _SAYS.items()},
    "default": {"model": ErrorBody, "description": "a fault of the server"},
}


def _only_json(request: Request) -> None:
    sent = request.headers.get("content-type", "")
    kind = sent.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        said = f"is {sent!r}" if sent else "is missing"
        raise ApiError(415, f"the header content-type {said}: send JSON, with content-type: application/json")


def json_router() -> APIRouter:
    """A router of endpoints that take JSON and nothing else."""
    return APIRouter(dependencies=[Depends(_only_json)], responses=ERRORS)
