"""Which blocks each request holds: given when it starts, more as it grows, a copy where it writes to a shared one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quire_engine.core.block_hash import BlockHash
from quire_engine.core.block_pool import BlockPool
from quire_engine.core.request import Request
from quire_engine.core.step import Step
from quire_engine.core.swap_space import SwapSpace


@dataclass(frozen=True, slots=True)
class _Found:
    """What there is of a waiting request, in this order."""

    cached: list[int]  # blocks
    num_skipped: int  # blocks that nobody will look at
    pages: list[int]  # in host memory
    num_tokens: int  # up to the last page's end


class BlockTables:
    """The blocks of requests, on the device and in host memory. What has to be copied goes into the step."""

    def __init__(
        self, *, num_blocks: int, num_swap_blocks: int, block_size: int, caches: bool, window: int | None = None
    ) -> None:
        self.pool = BlockPool(num_blocks)
        self.swap = SwapSpace(num_swap_blocks, block_size)
        self._block_size = block_size
        self._caches = caches
        self._window = window
        self._read_into: dict[int, int] = {}  # host pages that this step reads back, and the blocks they come to

    def cached(self, request: Request) -> list[int]:
        """The blocks of the request's first tokens that the prefix cache has."""
        return self.pool.match(request.block_hashes[: request.num_reusable_tokens // self._block_size])

    def num_known_tokens(self, request: Request) -> int:
        """Tokens of a waiting request that need not be computed if it starts now."""
        return self._find(request).num_tokens

    def to_start(self, unit: Sequence[Request]) -> tuple[int, int]:
        """What `unit` takes when it starts, and the tokens of its first request that need not be computed then.

        The former is in free blocks, and at most: its requests may turn out to share some.
        """
        found = [self._find(request) for request in unit]
        needed = sum(
            self._num_blocks(request.num_tokens) - len(one.cached) - one.num_skipped
            for request, one in zip(unit, found, strict=True)
        )
        free = self.pool.num_free_among({block for one in found for block in one.cached})
        return needed + free, found[0].num_tokens

    def awaited(self, unit: Sequence[Request]) -> list[BlockHash]:
        """What others may publish that `unit` could start with: of each request the first block that is not cached."""
        awaited = []
        for request in unit:
            hashes = request.block_hashes[: request.num_reusable_tokens // self._block_size]
            awaited += hashes[(known := len(self.pool.match(hashes))) : known + 1]
        return awaited

    def num_freed(self, unit: Sequence[Request], held: Counter[int]) -> int:
        """Blocks that nobody holds any more once `unit` stops, after those whose blocks are counted in `held`."""
        freed = 0
        for request in unit:
            held.update(request.held_block_ids)
            freed += sum(held[block] == self.pool.references(block) for block in request.held_block_ids)
        return freed

    def start(self, request: Request, step: Step) -> None:
        """Give a request blocks for all of its tokens: from the cache, from host memory, or new ones."""
        found = self._find(request)
        self.pool.acquire(found.cached)
        known = found.cached + [0] * found.num_skipped
        request.block_ids = known + [self._read_back(page, step) for page in found.pages]
        request.block_ids += self.pool.allocate(self._num_blocks(request.num_tokens) - len(request.block_ids))
        request.num_let_go, request.num_published = found.num_skipped, len(known)
        request.num_computed_tokens = found.num_tokens
        self.swap.read_back(request)

    def stop(self, request: Request) -> None:
        """Take a request's blocks back."""
        self._release(request, 0, len(request.block_ids))
        # What left the window came free before what is behind it, which nobody finds without it.
        self.pool.use(request.block_hashes[: request.num_let_go])
        request.block_ids, request.num_let_go = [], 0
        request.num_computed_tokens = request.num_published = request.num_blocks_sent = request.num_sound = 0

    def fork(self, parent: Request, child: Request) -> None:
        """Have `child` hold what `parent` holds. Takes time for the blocks that the two do not share already."""
        kept = _num_shared(parent, child)
        self.pool.acquire(parent.block_ids[max(kept, parent.num_let_go) :])
        self._release(child, kept, len(child.block_ids))
        child.follow(parent, kept, self._block_size)

    def let_go(self, requests: Iterable[Request]) -> None:
        """Release the blocks that have left the window of every layer. They stay in tables, and nobody looks there."""
        if self._window is None:
            return
        for request in requests:
            # One token more than is seen, since a beam may have to compute its last token again.
            unseen = (request.num_computed_tokens - self._window) // self._block_size
            if unseen > request.num_let_go:
                self._release(request, 0, unseen)
                request.num_let_go = unseen

    def num_lacking(self, requests: Iterable[Request]) -> int:
        """Blocks that running requests need for their next step, to grow and for copies of blocks that they share.

        Of those who write to a shared block the last one keeps it, unless somebody else holds it too.
        """
        lacking, size = 0, self._block_size
        writers: list[int] = []  # the blocks that each shares and writes to
        for request in requests:
            lacking += max(0, -(-len(request.token_ids) // size) - len(request.block_ids))
            index = self._shared_block(request)
            if index is not None:
                writers.append(request.block_ids[index])
        if not writers:
            return lacking
        counted = Counter(writers).items()
        return lacking + sum(count - (self.pool.references(block) == count) for block, count in counted)

    def prepare(self, request: Request, step: Step) -> None:
        """Make a running request ready to write: give it the blocks that it lacks, and its own where it shares one."""
        index = self._shared_block(request)
        if index is not None:
            shared, (own,) = request.block_ids[index], self.pool.allocate(1)
            step.copies.append((shared, own))
            self.pool.release([shared])
            request.block_ids[index] = own
            request.num_blocks_sent = min(request.num_blocks_sent, index)
        lacking = -(-len(request.token_ids) // self._block_size) - len(request.block_ids)
        if lacking > 0:
            request.block_ids += self.pool.allocate(lacking)

    def publish(self, request: Request, end: int) -> None:
        """Let others find the blocks that the step fills, up to the token at `end`, as far as tokens are known."""
        if not self._caches or end // self._block_size <= request.num_published:
            return
        request.hash_full_blocks(self._block_size)
        for i in range(request.num_published, min(end // self._block_size, len(request.block_hashes))):
            self.pool.publish(request.block_ids[i], request.block_hashes[i])
            request.num_published = i + 1

    def end_step(self) -> None:
        """The step is complete: host pages that it reads back may be written by later ones."""
        self._read_into = {}
        self.swap.end_step()

    def _find(self, request: Request) -> _Found:
        if request.swapped is not None and request.swapped.complete:
            return _Found([], request.swapped.first, request.swapped.pages, request.swapped.num_tokens)
        cached = self.cached(request)
        pages = self.swap.pages_after(request, len(cached))
        if pages and request.swapped is not None:
            return _Found(cached, 0, pages, request.swapped.num_tokens)
        return _Found(cached, 0, [], len(cached) * self._block_size)

    def _read_back(self, page: int, step: Step) -> int:
        """The block that a host page comes to: one for all who keep it."""
        block = self._read_into.get(page)
        if block is not None:
            self.pool.acquire([block])
            return block
        (block,) = self.pool.allocate(1)
        self._read_into[page] = block
        step.swap_in.append((page, block))
        return block

    def _release(self, request: Request, first: int, end: int) -> None:
        """Release what the request holds of its blocks from `first` to `end`.

        With a window, finite logits show nothing of the parts of a prompt that they do not come from.
        """
        first = max(first, request.num_let_go)
        seen = first if self._window is None else min(end, max(first, self._num_blocks(request.num_prompt_tokens)))
        shown = end if request.sound else min(end, max(seen, request.num_sound // self._block_size))
        self.pool.release(request.block_ids[shown:end], sound=False)
        self.pool.release(request.block_ids[seen:shown])
        self.pool.release(request.block_ids[first:seen], sound=False)

    def _shared_block(self, request: Request) -> int | None:
        """The place of the block that the request writes to next, where others hold that too."""
        computed, blocks = request.num_computed_tokens, request.block_ids
        index = computed // self._block_size
        if computed == len(request.token_ids) or index >= len(blocks):
            return None
        return index if self.pool.references(blocks[index]) > 1 else None

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)


def _num_shared(parent: Request, child: Request) -> int:
    """The blocks that `child` can keep to become like `parent`: up to the last that both hold in one place.

    Before that they may hold different ones, which are of the same tokens then.
    """
    first = max(parent.num_let_go, child.num_let_go)
    for i in range(min(len(parent.block_ids), len(child.block_ids)) - 1, first - 1, -1):
        if parent.block_ids[i] == child.block_ids[i]:
            return i + 1
    return 0
