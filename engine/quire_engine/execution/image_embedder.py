"""Prepared images of prompts as rows of hidden states, made when the first of their tokens is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from quire_engine.core.images import PreparedImage, PromptImage
from quire_engine.core.step import ScheduledSequence, Step
from quire_engine.models.language_model import ImageRows


class ImageEmbedder:
    """Keeps an image's hidden states while its tokens are computed, over several steps where it is cut.

    After the last token they are in the cache's pages. Who lost those, preempted, comes with its images anew.
    """

    def __init__(self, embed: Callable[[PreparedImage], torch.Tensor]) -> None:
        """`embed` makes [num_tokens, hidden_size] of a prepared image."""
        self._embed = embed
        self._left: dict[str, list[PromptImage]] = {}  # by request, images with tokens that are not computed
        self._prepared: dict[bytes, PreparedImage] = {}  # by digest, of those that no token was computed of
        self._made: dict[bytes, torch.Tensor] = {}  # by digest, of those that are computed in part

    @property
    def num_kept(self) -> int:
        """Images that are kept, prepared or as hidden states."""
        return len(self._prepared.keys() | self._made.keys())

    def apply(self, step: Step) -> None:
        """Bring the images up to date with what the step removes and adds."""
        for request_id in step.removed:
            self._left.pop(request_id, None)
        for sequence in step.new:
            if sequence.images:
                self._left[sequence.request_id] = list(sequence.images)
                self._prepared.update(sequence.prepared)

    def rows(self, firsts: Sequence[tuple[ScheduledSequence, int]]) -> ImageRows | None:
        """What stands in for the image tokens of a step, whose sequences have their first rows as given.

        None where it has none.
        """
        if not self._left:
            self._made.clear()
            self._prepared.clear()
            return None
        rows, parts = [], []
        for sequence, first in firsts:
            images = self._left.get(sequence.request_id, ())
            for image in images:
                start, end = max(image.start, sequence.start), min(image.end, sequence.end)
                if start < end:
                    parts.append(self._of(image)[start - image.start : end - image.start])
                    rows.append(torch.arange(start, end) + (first - sequence.start))
            if images:
                self._left[sequence.request_id] = [image for image in images if image.end > sequence.end]
        self._forget()
        if not rows:
            return None
        embedded = torch.cat(parts)
        return ImageRows(torch.cat(rows).to(embedded.device), embedded)

    def _of(self, image: PromptImage) -> torch.Tensor:
        made = self._made.get(image.digest)
        if made is None:
            made = self._made[image.digest] = self._embed(self._prepared.pop(image.digest))
        return made

    def _forget(self) -> None:
        """Drop what nobody needs any more."""
        self._left = {request_id: images for request_id, images in self._left.items() if images}
        wanted = {image.digest for images in self._left.values() for image in images}
        self._made = {digest: made for digest, made in self._made.items() if digest in wanted}
        self._prepared = {digest: image for digest, image in self._prepared.items() if digest in wanted}
