"""OpenAI's error body for everything that can go wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from quire_engine.core.messages import EngineOutput

# How pydantic names the member of a union in the path to what is wrong.
_KINDS_OF_UNIONS = (
    *("list[", "dict[", "function-", "constrained-", "of-", "tagged-union[", "literal["),
    *("NamedFunction", "NamedToolChoice"),
)
_LONGEST_SHOWN = 64  # characters of a value that an error repeats
CLIENT_CLOSED_REQUEST = 499  # nginx's; nobody is there to read it, but metrics and traces count it
KINDS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    429: "RateLimitError",
    CLIENT_CLOSED_REQUEST: "ClientDisconnected",
    503: "ServiceUnavailableError",
}


class ApiError(Exception):
    """An answer other than 2xx, with OpenAI's body. `param` is the field that was wrong."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.message, self.param = sendable(message), None if param is None else sendable(param)

    def body(self) -> dict[str, Any]:
        return error_body(self.status, self.message, self.param)

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, headers=self.headers)


def sendable(text: str) -> str:
    """With escapes for half characters, which a client's own words may hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def refused(output: EngineOutput, param: str | None = None) -> ApiError:
    """What a client is told of an output with an error; of the field `param`, where the request is wrong."""
    message = output.error or "the engine refused the request"
    if output.error_kind == "busy":
        return ApiError(429, message, headers={"retry-after": "1"})
    if output.error_kind == "missing":
        return ApiError(404, message, param="model")
    return ApiError(400, message, param=param) if output.error_kind == "invalid" else ApiError(500, message)


def error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": error_kind(status), "param": param, "code": status}}


def error_kind(status: int) -> str:
    """What the body of an answer with this status, 400 or above, calls its error."""
    return KINDS.get(status) or ("BadRequestError" if status < 500 else "InternalServerError")


async def on_api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = f"there is nothing at {request.url.path}: /v1/models lists what is served"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.method} is not allowed at {request.url.path}"
    elif error.status_code == HTTPStatus.BAD_REQUEST:  # fastapi's, which does not say what is wrong
        message = "the body cannot be read: send one JSON object in UTF-8, not too deeply nested"
    return ApiError(error.status_code, message, headers=error.headers).response()


async def on_validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    message, param = describe(error.errors())
    return ApiError(HTTPStatus.BAD_REQUEST, message, param=param).response()


def describe(errors: Sequence[Any]) -> tuple[str, str | None]:
    """One of pydantic's errors as (message, field): the deepest, as it tells most where a field has several forms."""
    first = max(errors, key=lambda e: len(e["loc"]))
    path = [str(p) for p in first["loc"] if p != "body"]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return f"the body is not JSON: {reason} at character {first['loc'][-1]}", None
    field = ".".join(p for p in path if p not in ("str", "bool", "[key]") and not p.startswith(_KINDS_OF_UNIONS))
    message = str(first["msg"]).removeprefix("Value error, ")
    if not field and first["type"] == "model_attributes_type":
        return "the body is not a JSON object: send one, with the header `content-type: application/json`", None
    if first["type"] == "union_tag_invalid":
        kinds = str(first["ctx"]["expected_tags"]).replace("of-", "")
        kind = str(first["ctx"]["tag"]).removeprefix("of-")
        return f"{field}.type is {kind!r}: it must be one of {kinds}", f"{field}.type"
    if first["type"] == "missing":
        return (f"{field or 'the body'} is missing", field or None)
    if not field and first["type"] == "value_error":  # of fields that do not go together: it begins with one of them
        return message, message.partition(" ")[0]
    value = _shown(first.get("input"))
    if value is not None and field and first["type"] != "value_error" and "[key]" not in path:
        return f"{field} is {value}: {message}", field
    is_named = re.search(rf"\b{re.escape(field)}\b", message) is not None
    return (message if is_named else f"{field}: {message}"), field or None


def _shown(value: object) -> str | None:
    """A number, a flag or a short string, as in JSON, but for the quotes; None for what has no place in a line."""
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, bool | int | float):
        text = str(value).lower() if isinstance(value, bool) else str(value)
    else:
        return None
    return text if len(text) <= _LONGEST_SHOWN else None
