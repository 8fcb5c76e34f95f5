"""OpenAI's error body."""

from __future__ import annotations

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """`param` is the field that was wrong, `code` the status of the answer."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(BaseModel):
    error: ErrorDetail
