"""What keeps an engine from starting, whichever process finds out."""

from __future__ import annotations


class StartupError(Exception):
    """Why the engine cannot start: `Reason: what, where, what to write instead`, in one line."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {' '.join(message.split())}")
        self.reason = reason
