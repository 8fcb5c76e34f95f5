"""The work queue: no LLMService is lost, none is reconciled twice at once, failures are put off."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_operator.run.queue import WorkQueue

A, B = ("ns", "a"), ("ns", "b")


async def nothing_to_take(queue: WorkQueue) -> bool:
    try:
        await asyncio.wait_for(queue.take(), 0.02)
    except TimeoutError:
        return True
    return False


async def test_a_key_that_is_added_often_is_taken_once() -> None:
    queue = WorkQueue()
    for _ in range(3):
        queue.add(A)
    assert await queue.take() == A
    queue.done(A)
    assert await nothing_to_take(queue)


async def test_a_change_during_a_reconcile_leads_to_another_one_afterwards() -> None:
    queue = WorkQueue()
    queue.add(A)
    assert await queue.take() == A
    queue.add(A)
    assert await nothing_to_take(queue)
    queue.done(A)
    assert await queue.take() == A


async def test_a_running_key_does_not_hold_up_the_others() -> None:
    queue = WorkQueue()
    queue.add(A)
    await queue.take()
    queue.add(A)
    queue.add(B)
    assert await queue.take() == B


async def test_an_earlier_time_replaces_a_later_one() -> None:
    queue = WorkQueue()
    queue.add(A, 60)
    assert await nothing_to_take(queue)
    queue.add(A)
    assert await asyncio.wait_for(queue.take(), 1) == A
    queue.done(A)
    assert await nothing_to_take(queue)


async def test_a_delayed_key_is_taken_when_its_time_comes() -> None:
    queue = WorkQueue()
    queue.add(A, 0.05)
    assert await asyncio.wait_for(queue.take(), 2) == A


async def test_failures_are_put_off_for_longer_each_time_until_one_succeeds() -> None:
    queue = WorkQueue()
    delays = []
    for _ in range(12):
        delays.append(queue.failed(A))
    assert delays[4] > delays[0]
    assert all(delay <= 60 for delay in delays)
    assert delays[11] >= 30
    queue.done(A)
    assert queue.failed(A) <= 0.25


async def test_what_failed_together_does_not_come_back_together() -> None:
    queue = WorkQueue()
    keys = [("ns", str(number)) for number in range(100)]
    delays = {queue.failed(key) for key in keys}
    assert len(delays) > 50
    assert max(delays) <= 2 * min(delays)


async def test_a_conflict_is_tried_again_at_once_but_only_once() -> None:
    queue = WorkQueue()
    assert queue.failed(A, at_once=True) == 0
    assert queue.failed(A, at_once=True) > 0


async def test_the_servers_own_delay_is_kept() -> None:
    assert WorkQueue().failed(A, at_least=9) >= 9


@pytest.mark.parametrize("workers", [1, 4])
@given(adds=st.lists(st.integers(0, 4), max_size=30))
def test_everything_added_is_reconciled_after_its_last_change_and_never_twice_at_once(
    workers: int, adds: list[int]
) -> None:
    asyncio.run(_drain(workers, adds))


async def _drain(workers: int, adds: list[int]) -> None:
    queue, running = WorkQueue(), set()
    version = dict.fromkeys(adds, 0)
    seen = dict.fromkeys(adds, -1)

    async def work() -> None:
        while True:
            key = await queue.take()
            number = int(key[1])
            assert key not in running
            running.add(key)
            seen[number] = version[number]
            await asyncio.sleep(0)
            running.discard(key)
            queue.done(key)

    tasks = [asyncio.create_task(work()) for _ in range(workers)]
    for number in adds:
        version[number] += 1
        queue.add(("ns", str(number)))
        await asyncio.sleep(0)
    for _ in range(200):
        await asyncio.sleep(0)
    for task in tasks:
        assert not task.done()
        task.cancel()
    assert seen == version
