"""What the API server answers when it does not do what was asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """An answer with a status of 400 or above."""

    def __init__(self, status: int, body: Mapping[str, Any], what: str, retry_after: float | None = None) -> None:
        self.status = status
        self.reason = str(body.get("reason") or "")
        self.message = str(body.get("message") or f"HTTP {status}")
        self.causes = [str(cause.get("reason", "")) for cause in (body.get("details") or {}).get("causes") or []]
        self.retry_after = retry_after
        super().__init__(f"{what}: {self.status} {self.reason}: {self.message}")

    @property
    def is_refusal(self) -> bool:
        """The request itself is unacceptable: sending it again changes nothing until somebody acts."""
        if self.status == 500:  # what server-side apply answers to a field of the wrong type or of no name
            return self.message.startswith("failed to create typed patch object")
        return self.status in (400, 403, 422) and not self.namespace_is_going

    @property
    def is_of_webhook(self) -> bool:
        """An admission webhook gave no answer."""
        return "failed calling webhook" in self.message

    @property
    def is_of_rights(self) -> bool:
        """The operator's own roles do not allow it."""
        return self.status == 403 and 'is forbidden: User "' in self.message and " cannot " in self.message

    @property
    def namespace_is_going(self) -> bool:
        """The namespace is being deleted, and whatever is in it goes too."""
        return self.status == 403 and ("NamespaceTerminating" in self.causes or "being terminated" in self.message)


class UnreachableError(Exception):
    """There was no answer: refused, reset or timed out, or not the API server's."""
