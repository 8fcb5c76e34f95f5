"""What can be wrong with a model before it runs."""

from __future__ import annotations


class CheckpointError(Exception):
    """A model that cannot be loaded. `reason` is a CamelCase word for programs, the text one line for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
