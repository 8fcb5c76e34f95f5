"""Pages of preempted requests in host memory, so that they need not be computed anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from quire_engine.core.block_pool import BlockPool
from quire_engine.core.request import Request, SwappedPages


class SwapSpace:
    """Host pages 0 .. `num_pages` - 1, and who keeps what in them.

    Only private pages are kept, those that nobody but the preempted requests holds. A shared page stays where it
    is: whoever comes back finds it in the prefix cache, or computes everything anew.
    """

    def __init__(self, num_pages: int, block_size: int) -> None:
        self.pool = BlockPool(num_pages)
        self._block_size = block_size
        self.num_requests = 0  # that keep pages here
        self.num_swaps = 0  # of requests, so far
        self._read_back: list[list[int]] = []

    @property
    def usage(self) -> float:
        """The share of the pages that are in use, 0 to 1."""
        return self.pool.num_held / max(1, self.pool.num_blocks)

    def keep(self, requests: Sequence[Request], blocks: BlockPool) -> list[tuple[int, int]]:
        """Find room for the private pages of `requests`, which are about to release them, all at once or none.

        Returns the copies to make, (block, host page). Blocks that several of `requests` share are copied once.
        """
        holders = Counter(block for request in requests for block in request.held_block_ids)
        tails: list[tuple[Request, int, list[int]]] = []
        for request in requests:
            filled = request.block_ids[: -(-request.num_computed_tokens // self._block_size)]
            first = len(filled)
            while first > request.num_let_go and blocks.references(filled[first - 1]) == holders[filled[first - 1]]:
                first -= 1
            tails.append((request, first, filled[first:]))
        private = list(dict.fromkeys(block for _, _, tail in tails for block in tail))
        if len(private) > self.pool.num_free:
            return []
        page_of = dict(zip(private, self.pool.allocate(len(private)), strict=True))
        for request, first, tail in tails:
            if tail:
                pages, complete = [page_of[b] for b in tail], 0 < first == request.num_let_go
                request.swapped = SwappedPages(first, pages, request.num_computed_tokens, complete)
                self.pool.acquire(request.swapped.pages)
                self.num_requests += 1
        self.pool.release(list(page_of.values()))
        self.num_swaps += bool(private)
        return list(page_of.items())

    def pages_after(self, request: Request, num_blocks: int) -> list[int]:
        """The pages to read back behind the first `num_blocks` blocks; none where a block before them is missing."""
        kept = request.swapped
        return [] if kept is None or num_blocks < kept.first else kept.pages[num_blocks - kept.first :]

    def read_back(self, request: Request) -> None:
        """The request starts to run: its pages are free from the next step on."""
        if request.swapped is not None:
            self._read_back.append(self._taken(request))

    def drop(self, request: Request) -> None:
        """The request ends while it waits: nobody will read its pages."""
        if request.swapped is not None:
            self.pool.release(self._taken(request))

    def end_step(self) -> None:
        """Free the pages that the step reads back: what later steps write comes after it."""
        for pages in self._read_back:
            self.pool.release(pages)
        self._read_back = []

    def _taken(self, request: Request) -> list[int]:
        assert request.swapped is not None
        pages, request.swapped = request.swapped.pages, None
        self.num_requests -= 1
        return pages

    def check_integrity(self, waiting: Iterable[Request]) -> None:
        """Raise `AssertionError` unless exactly the pages of `waiting` are held, between steps."""
        kept = [r.swapped.pages for r in waiting if r.swapped is not None]
        self.pool.check_integrity(kept)
        assert self.num_requests == len(kept), f"{self.num_requests} requests are swapped out, {len(kept)} say so"
