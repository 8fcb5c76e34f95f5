"""Whose matter an error is that a request is refused with."""

from __future__ import annotations

from quire_engine.core.adapters import MissingAdapterError
from quire_engine.core.grammar import BusyError
from quire_engine.core.messages import ErrorKind


class RefusedError(ValueError):
    """As another was: in the same words, and of the same kind."""

    def __init__(self, message: str, kind: ErrorKind) -> None:
        super().__init__(message)
        self.kind = kind


def kind_of(error: ValueError) -> ErrorKind:
    if isinstance(error, RefusedError):
        return error.kind
    if isinstance(error, BusyError):
        return "busy"
    return "missing" if isinstance(error, MissingAdapterError) else "invalid"
