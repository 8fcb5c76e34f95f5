"""Whose matter an error is that a request is refused with."""

from __future__ import annotations

from quire_engine.core.adapters import MissingAdapterError
from quire_engine.core.grammar import BusyError
from quire_engine.core.messages import ErrorKind


def kind_of(error: ValueError) -> ErrorKind:
    if isinstance(error, BusyError):
        return "busy"
    return "missing" if isinstance(error, MissingAdapterError) else "invalid"
