"""How images become hidden states that stand among those of tokens: what every encoder of images has to say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from quire_engine.core.images import ImageCount, ImageTokens
from quire_engine.models.language_model import ImageInputs


class ImageEmbedding(nn.Module):
    """An encoder, and what is behind it, up to the decoder's hidden states."""

    def forward(self, inputs: ImageInputs) -> torch.Tensor:
        """One image -> [tokens of the image, hidden_size]."""
        raise NotImplementedError  # every encoder has its own


@dataclass(frozen=True, kw_only=True)
class VisionSpec(ABC):
    """The image encoder of a decoder. Each kind of encoder has its own."""

    token_id: int  # of the tokens that images stand in for
    adapted: bool = False  # whether prompts with images are computed with an adapter of the decoder

    def prepared_by(self, settings: Mapping[str, object]) -> Self:
        """The same where images are prepared as `settings`, those of the checkpoint's image processor, say.

        Raises `ValueError` that names what is wrong with one that tokens are counted by.
        """
        return self

    @property
    def tunable(self) -> Mapping[str, int]:
        """Of those settings the ones that a flag may change, whole numbers above 0, with the most that each may be."""
        return {}

    @property
    @abstractmethod
    def count(self) -> ImageCount:
        """How many tokens an image stands in for."""

    @property
    @abstractmethod
    def num_elements(self) -> int:
        """Elements of the weight matrices and tables."""

    @property
    @abstractmethod
    def usual_processor(self) -> tuple[str, Mapping[str, object]]:
        """The class of transformers, and its settings, that prepares images where the checkpoint names none."""

    @property
    def options(self) -> Mapping[str, object]:
        """What the image processor is told with each image, whatever its own settings say."""
        return {}

    @abstractmethod
    def inputs(self, width: int, height: int) -> Mapping[str, tuple[int, ...]]:
        """The shapes that `build`'s module needs of an image of so many pixels, by the image processor's names."""

    @abstractmethod
    def build(self, hidden_size: int) -> ImageEmbedding:
        """The encoder, for a decoder of `hidden_size`."""

    def in_prompts(self, most: int) -> ImageTokens:
        """How images stand in prompts that may have `most`."""
        return ImageTokens(self.token_id, self.count, most, self.adapted)
