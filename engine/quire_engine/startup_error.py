"""What keeps an engine from starting, whichever process finds out."""

from __future__ import annotations


class StartupError(Exception):
    """Why the engine cannot start: `Reason: what, where, what to write instead`, in one line."""

    def __init__(self, reason: str, message: str) -> None:
        line = f"{reason}: {' '.join(message.split())}"
        # What a file says of itself need not be text that can be sent on.
        super().__init__(line.encode("utf-8", "backslashreplace").decode())
        self.reason = reason
