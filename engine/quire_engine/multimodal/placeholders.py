"""The tokens that stand for images in a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from quire_engine.core.images import ImageTokens, PromptImage
from quire_engine.multimodal.image_files import ImageFile, digest_of


def expanded(
    ids: Sequence[int], files: Sequence[ImageFile], tokens: ImageTokens
) -> tuple[list[int], list[PromptImage]]:
    """A prompt that has one image token for each of `files`, with as many as each takes, and where they stand.

    Raises `ValueError` where there are more or fewer image tokens than images, or the model does not take one's size.
    """
    found = [i for i, token in enumerate(ids) if token == tokens.token_id]
    if len(found) != len(files):
        raise ValueError(
            f"there are {len(files)} images and the prompt has the image token, {tokens.token_id}, {len(found)} times: "
            "it must stand once for each"
        )
    result: list[int] = []
    images = []
    done = 0
    for place, file in zip(found, files, strict=True):
        result += ids[done:place]
        count = tokens.count.of(file.width, file.height)
        images.append(PromptImage(file.data, digest_of(file.data), len(result), count, file.width, file.height))
        result += [tokens.token_id] * count
        done = place + 1
    return [*result, *ids[done:]], images
