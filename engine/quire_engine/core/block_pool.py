"""The pages of the KV cache: who holds them, which can be reused, which go first."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from quire_engine.core.block_hash import BlockHash


class BlockPool:
    """Counts references to blocks 0 .. `num_blocks` - 1 and remembers what the full ones hold.

    A block is free when nobody refers to it. A free block that was published under a hash keeps its content
    and can be found again until it is allocated anew. Allocation takes blocks of no use first, then the
    least recently used; of one sequence, the tail before the head, since a tail is useless without its head.

    `cleared` are allocated blocks that may hold NaN and have to become zeros before anybody reads them.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._hash_of: list[BlockHash | None] = [None] * num_blocks
        self._block_of: dict[BlockHash, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self.num_freed = 0  # blocks that somebody held and nobody holds any more, so far
        self._unsound: set[int] = set()  # free when their holder did not know yet whether they hold NaN
        self.cleared: list[int] = []

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_held(self) -> int:
        return self.num_blocks - len(self._free)

    def match(self, hashes: Sequence[BlockHash]) -> list[int]:
        """The blocks that hold the longest known prefix of `hashes`. Takes no reference."""
        found = []
        for block_hash in hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def holds(self, block_hash: BlockHash) -> bool:
        """Whether `match` knows a block that holds this."""
        return block_hash in self._block_of

    def num_free_among(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` stop being free when they are acquired."""
        return sum(self._references[block] == 0 for block in blocks)

    def references(self, block: int) -> int:
        """How many hold `block`."""
        return self._references[block]

    def acquire(self, blocks: Iterable[int]) -> None:
        """Add a reference to each of `blocks`, as found by `match`."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks with one reference each; what they held is forgotten.

        Raises `RuntimeError` when fewer are free: the caller has to look at `num_free` first.
        """
        if count > len(self._free):
            raise RuntimeError(f"{count} blocks were asked for and {len(self._free)} are free")
        blocks = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            old_hash = self._hash_of[block]
            if old_hash is not None:
                del self._block_of[old_hash]
                self._hash_of[block] = None
            if block in self._unsound:
                self._unsound.remove(block)
                self.cleared.append(block)
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def publish(self, block: int, block_hash: BlockHash) -> None:
        """Let `match` find a held, full block. The first block published under a hash keeps it."""
        if self._hash_of[block] is None and block_hash not in self._block_of:
            self._hash_of[block] = block_hash
            self._block_of[block_hash] = block

    def forget(self, blocks: Iterable[int]) -> None:
        """Have `match` find none of `blocks` any more, but those that somebody holds."""
        for block in blocks:
            old_hash = self._hash_of[block]
            if self._references[block] == 0 and old_hash is not None:
                del self._block_of[old_hash]
                self._hash_of[block] = None
                self._free.move_to_end(block, last=False)

    def release(self, blocks: Sequence[int], *, sound: bool = True) -> None:
        """Drop one reference to each of `blocks`, the blocks of one sequence in order.

        `sound` says that they hold no NaN: where nobody holds them any more, else, they are cleared for who is next.
        Raises `RuntimeError` on a block that nobody holds.
        """
        for block in reversed(blocks):
            if self._references[block] == 0:
                raise RuntimeError(f"block {block} is released and nobody holds it")
            self._references[block] -= 1
            if self._references[block] == 0:
                (self._unsound.discard if sound else self._unsound.add)(block)
                self._free[block] = None
                self.num_freed += 1
                if self._hash_of[block] is None:
                    self._free.move_to_end(block, last=False)

    def use(self, hashes: Sequence[BlockHash]) -> None:
        """Have the free blocks that hold `hashes`, the beginning of a sequence, be allocated last, its first of all."""
        for block_hash in reversed(hashes):
            block = self._block_of.get(block_hash)
            if block is not None and self._references[block] == 0:
                self._free.move_to_end(block)

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Raise `AssertionError` unless the references are exactly those of `held`, a block list per holder."""
        counts = Counter(block for blocks in held for block in blocks)
        for block in range(self.num_blocks):
            assert self._references[block] == counts[block], (
                f"block {block} has {self._references[block]} references and {counts[block]} holders"
            )
            assert (block in self._free) == (counts[block] == 0), f"block {block} is both held and free, or neither"
        published = {block: h for block, h in enumerate(self._hash_of) if h is not None}
        assert {h: block for block, h in published.items()} == self._block_of, "hashes and blocks disagree"
        assert len(published) == len(self._block_of), "two blocks are published under one hash"
