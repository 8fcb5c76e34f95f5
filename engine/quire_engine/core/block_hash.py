"""Names for full blocks: equal hashes mean equal tokens, at equal positions, under the same salt."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

BlockHash = bytes


def root_hash(cache_salt: str | None) -> BlockHash:
    """The parent of a sequence's first block. Requests with different salts never share a block."""
    return hashlib.sha256(b"quire" if cache_salt is None else b"quire:" + cache_salt.encode()).digest()


def block_hash(parent: BlockHash, token_ids: Sequence[int]) -> BlockHash:
    """The hash of a full block, chained to the block before it."""
    return hashlib.sha256(parent + array("q", token_ids).tobytes()).digest()
