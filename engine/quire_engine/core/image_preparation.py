"""What the core knows of preparing images: it is done beside the steps, before a request is scheduled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from quire_engine.core.images import PreparedImage, PromptImage


class PendingImages(Protocol):
    """A request's images on their way. Whoever has them prepared calls `leave` once."""

    def done(self) -> bool: ...

    def wait(self, seconds: float) -> None:
        """Return once they are done, and after so many seconds anyway."""
        ...

    def check(self) -> None:
        """Once they are done: raises `ValueError` for an image that cannot be prepared."""
        ...

    def leave(self) -> None:
        """Nobody needs them any more: what is not begun is not done, and what was made is dropped."""
        ...


class ImagePreparation(Protocol):
    """Makes of image files what an encoder takes: decodes, resizes, cuts and normalises."""

    def prepare(self, images: Sequence[PromptImage]) -> PendingImages:
        """Begin to prepare `images`, as many of them as there is memory for at once."""
        ...

    def take(self, images: Sequence[PromptImage]) -> dict[bytes, PreparedImage]:
        """What is made of `images`, by digest. Those that nobody began to prepare are prepared here and now."""
        ...
