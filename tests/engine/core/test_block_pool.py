"""The block pool, against a model of it that is too simple to be wrong."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quire_engine.core.block_hash import block_hash, root_hash
from quire_engine.core.block_pool import BlockPool

NUM_BLOCKS = 8


def chain(*blocks: int, salt: str | None = None) -> list[bytes]:
    hashes, parent = [], root_hash(salt)
    for value in blocks:
        parent = block_hash(parent, [value, value])
        hashes.append(parent)
    return hashes


class PoolMachine(RuleBasedStateMachine):
    """Sequences come, share what is cached, and go, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.held: list[list[int]] = []
        self.content: dict[int, bytes] = {}

    @rule(values=st.lists(st.integers(0, 2), min_size=1, max_size=5), tail=st.integers(0, 2))
    def admit(self, values: list[int], tail: int) -> None:
        hashes = chain(*values)
        cached = self.pool.match(hashes)
        for block, expected in zip(cached, hashes, strict=False):
            assert self.content[block] == expected, "a match holds something else"
        fresh = len(values) - len(cached) + tail
        if fresh + self.pool.num_free_among(cached) > self.pool.num_free:
            return
        self.pool.acquire(cached)
        new = self.pool.allocate(fresh)
        in_use = {b for blocks in self.held for b in blocks}
        assert not in_use & set(new), "a block that is in use was handed out"
        for block, h in zip(new, hashes[len(cached) :], strict=False):
            self.content[block] = h
            self.pool.publish(block, h)
        self.held.append(cached + new)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.pool.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @invariant()
    def books_agree(self) -> None:
        self.pool.check_integrity(self.held)
        assert self.pool.num_held == len({b for blocks in self.held for b in blocks})


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_block_released_twice_is_refused() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(RuntimeError, match="nobody holds it"):
        pool.release(blocks)


def test_more_than_is_free_is_refused() -> None:
    pool = BlockPool(2)
    with pytest.raises(RuntimeError, match="3 blocks were asked for and 2 are free"):
        pool.allocate(3)


def test_the_tail_of_a_sequence_is_reused_before_its_head() -> None:
    pool = BlockPool(3)
    blocks, hashes = pool.allocate(3), chain(1, 2, 3)
    for block, h in zip(blocks, hashes, strict=True):
        pool.publish(block, h)
    pool.release(blocks)
    assert pool.allocate(1) == [blocks[2]]
    assert pool.match(hashes) == blocks[:2]


def test_the_least_recently_used_sequence_is_forgotten_first() -> None:
    pool = BlockPool(2)
    old, new = pool.allocate(1), pool.allocate(1)
    pool.publish(old[0], chain(1)[0])
    pool.publish(new[0], chain(2)[0])
    pool.release(old)
    pool.release(new)
    assert pool.allocate(1) == old
    assert pool.match(chain(2)) == new


def test_blocks_without_content_are_reused_before_cached_ones() -> None:
    pool = BlockPool(2)
    cached, plain = pool.allocate(1), pool.allocate(1)
    pool.publish(cached[0], chain(1)[0])
    pool.release(cached)
    pool.release(plain)
    assert pool.allocate(1) == plain


def test_the_same_tokens_after_another_beginning_have_another_hash() -> None:
    assert chain(1, 2)[1] != chain(3, 2)[1]
    assert chain(1)[0] != chain(1, salt="a")[0]
    assert chain(1, salt="a")[0] != chain(1, salt="b")[0]
