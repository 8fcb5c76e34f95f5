"""Panics of llguidance as ordinary errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise `ValueError` for a panic of a Rust library, which Python otherwise takes for a wish to end the process."""
    try:
        yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise ValueError(f"a fault in llguidance: {error}") from error
