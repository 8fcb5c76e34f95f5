"""Names for full blocks: equal hashes mean equal tokens and images, at equal positions, under the same salt."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from quire_engine.core.images import PromptImage

BlockHash = bytes


def root_hash(cache_salt: str | None, rotated_for: int = 0, *, adapted: bool = False, adapter: int = 0) -> BlockHash:
    """The parent of a sequence's first block. Requests that differ in any of them never share a block.

    `rotated_for` is the length that keys are rotated for, where they are otherwise than in short sequences; `adapted`
    says whether the model is changed for images, and `adapter` by which adapter, 0 for none.
    """
    name = b"quire" if not rotated_for else f"quire {rotated_for}".encode()
    name += b" adapted" if adapted else b""
    name += f" by {adapter}".encode() if adapter else b""
    return hashlib.sha256(name if cache_salt is None else name + b":" + cache_salt.encode()).digest()


def block_hash(parent: BlockHash, token_ids: Sequence[int], images: Sequence[PromptImage] = ()) -> BlockHash:
    """The hash of a full block, chained to the block before it. `images` are those that have tokens in it."""
    own = array("q", token_ids).tobytes()
    for image in images:
        own += array("q", [image.start]).tobytes() + image.digest
    return hashlib.sha256(parent + own).digest()
