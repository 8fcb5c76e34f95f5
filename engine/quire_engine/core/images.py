"""Images of a prompt, as plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptImage:
    """An image file, and the tokens of the prompt that stand for it."""

    data: bytes  # PNG, JPEG, WEBP or GIF
    digest: bytes  # of `data`: equal ones are taken for equal images
    start: int  # position of its first token
    num_tokens: int

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


@dataclass(frozen=True)
class ImageTokens:
    """How images stand in the prompts of a model that takes them."""

    token_id: int  # of each token that stands for a part of an image
    num_tokens: int  # for each image
    most: int  # images in a prompt
