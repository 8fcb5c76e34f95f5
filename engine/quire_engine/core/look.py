"""What it takes to start a request."""

from __future__ import annotations

from dataclasses import dataclass

from quire_engine.core.block_hash import BlockHash
from quire_engine.core.block_pool import BlockPool
from quire_engine.core.request import Request


@dataclass(frozen=True, slots=True)
class Look:
    """The answer, as far as is known without looking again.

    What it lacks shrinks when blocks come free, by one each at most, and when somebody publishes a block that it
    awaits. Whatever else happens to the pool makes it lack as much or more.
    """

    request: Request
    num_lacking: int  # blocks, beyond those that were free
    num_tokens: int  # to be computed
    num_freed: int  # what the pool had counted
    awaited: list[BlockHash]

    def holds(self, request: Request, pool: BlockPool) -> bool:
        """Whether it still tells of `request`."""
        return request is self.request and not any(pool.holds(block_hash) for block_hash in self.awaited)

    def least_lacking(self, pool: BlockPool) -> int:
        """Blocks that it lacks now, at least. Below 0: so many more are free."""
        return self.num_lacking - (pool.num_freed - self.num_freed)
