"""What is looked at in the background: nobody waits, and only news wakes who asked."""

from __future__ import annotations

import asyncio

from quire_operator.run.lookups import Lookups

ONE, TWO = ("default", "one"), ("default", "two")


async def settled(lookups: Lookups[str]) -> None:
    await asyncio.gather(*(entry.task for entry in lookups._entries.values() if entry.task is not None))


async def test_the_first_who_ask_are_woken_once_it_is_known() -> None:
    woken: list[tuple[str, str]] = []
    lookups: Lookups[str] = Lookups(woken.append)
    reads = 0

    async def read() -> tuple[str, float]:
        nonlocal reads
        reads += 1
        return "known", 60.0

    assert lookups.get(ONE, "x", read) is None
    assert lookups.get(TWO, "x", read) is None
    await settled(lookups)
    assert sorted(woken) == [ONE, TWO]
    assert lookups.get(ONE, "x", read) == "known"
    assert reads == 1


async def test_what_has_grown_old_is_given_and_read_again_and_the_same_wakes_nobody() -> None:
    woken: list[tuple[str, str]] = []
    lookups: Lookups[str] = Lookups(woken.append)
    answers = ["first", "first", "second"]

    async def read() -> tuple[str, float]:
        return answers.pop(0), 0.0

    lookups.get(ONE, "x", read)
    await settled(lookups)
    woken.clear()
    assert lookups.get(ONE, "x", read) == "first"
    await settled(lookups)
    assert woken == []
    assert lookups.get(TWO, "x", read) == "first"
    await settled(lookups)
    assert woken == [TWO]


async def test_what_is_being_read_ends_when_it_is_closed() -> None:
    lookups: Lookups[str] = Lookups(lambda key: None)

    async def read() -> tuple[str, float]:
        await asyncio.Event().wait()
        return "", 0.0

    lookups.get(ONE, "x", read)
    await lookups.close()
    assert all(entry.task is None or entry.task.done() for entry in lookups._entries.values())
