"""The id of the request that is being answered: the client's own, or one made here."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar

HEADER = "x-request-id"
_USABLE = re.compile(r"[\x21-\x7e]{1,128}")
_current: ContextVar[str] = ContextVar("request_id")


def begin(sent: str | None) -> str:
    """The id of the request that begins in this context: what the client sent, where that can be one."""
    request_id = sent if sent is not None and _USABLE.fullmatch(sent) else uuid.uuid4().hex
    _current.set(request_id)
    return request_id


def current_id() -> str | None:
    """The id of the request that is being answered, where one is."""
    return _current.get(None)


def answer_id(prefix: str) -> str:
    """The id of an answer to the current request."""
    return f"{prefix}-{_current.get(None) or uuid.uuid4().hex}"
