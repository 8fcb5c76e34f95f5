"""What waits for a slow reader: all of it, in order, and in little memory."""

from __future__ import annotations

import asyncio
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_engine.core.messages import EngineOutput
from quire_engine.core.step import TokenLogprobs
from quire_engine.server.errors import ApiError
from quire_engine.server.mailbox import MOST_AT_HAND, Mailbox


def output(number: int, num_logprobs: int = 0) -> EngineOutput:
    """A token like no other, with logprobs as unlike each other as those of a model."""
    chance = random.Random(number)
    logprobs = None
    if num_logprobs:
        ids = [chance.randrange(150_000) for _ in range(num_logprobs)]
        logprobs = [TokenLogprobs(number, -chance.random(), 1, ids, [-chance.random() * 9 for _ in ids])]
    return EngineOutput(f"{'a3' * 16}-{number % 7}", [number], logprobs=logprobs)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(-2, 3 * MOST_AT_HAND), max_size=12))
def test_every_output_is_taken_once_and_in_its_order(turns: list[int]) -> None:
    async def read() -> list[EngineOutput]:
        mailbox, taken, made = Mailbox(), [], 0
        for turn in turns:  # so many come, or what is there is read so often
            for _ in range(max(turn, 0)):
                mailbox.put(output(made))
                made += 1
            for _ in range(-turn):
                if len(taken) < made:
                    taken += await mailbox.take()
        while len(taken) < made:
            taken += await mailbox.take()
        return taken

    taken = asyncio.run(read())
    assert taken == [output(number) for number in range(sum(max(turn, 0) for turn in turns))]


@pytest.mark.parametrize(("num_logprobs", "most"), [(0, 32), (20, 512)])
def test_a_token_that_nobody_reads_costs_bytes_and_not_kilobytes(num_logprobs: int, most: int) -> None:
    mailbox, count = Mailbox(), 20 * MOST_AT_HAND
    tracemalloc.start()
    try:
        for number in range(count):
            mailbox.put(output(number, num_logprobs))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    at_hand = MOST_AT_HAND * (4096 if num_logprobs else 1024)
    assert used - at_hand < count * most


async def test_whoever_waits_has_all_of_a_step_at_once() -> None:
    mailbox = Mailbox()
    reading = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    for number in range(2 * MOST_AT_HAND):
        mailbox.put(output(number))
    assert len(await reading) == 2 * MOST_AT_HAND


async def test_a_failure_comes_after_all_that_was_made_before_it() -> None:
    mailbox, taken = Mailbox(), 0
    for number in range(2 * MOST_AT_HAND):
        mailbox.put(output(number, 20))
    mailbox.fail(ApiError(500, "gone"))
    while taken < 2 * MOST_AT_HAND:
        taken += len(await mailbox.take())
    with pytest.raises(ApiError, match="gone"):
        await mailbox.take()


async def test_a_reader_that_goes_away_while_it_waits_leaves_it_usable() -> None:
    mailbox = Mailbox()
    reading = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    mailbox.put(output(1))
    assert await mailbox.take() == [output(1)]
