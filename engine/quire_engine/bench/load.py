"""A run: requests sent as planned, with a bound on how many are under way."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

import aiohttp

from quire_engine.bench.client import Target, send
from quire_engine.bench.outcome import Outcome
from quire_engine.bench.samples import Sample


async def run_load(
    client: aiohttp.ClientSession,
    target: Target,
    samples: Sequence[Sample],
    times: Sequence[float],
    max_concurrency: int | None,
    ended: Callable[[Outcome], None],
) -> tuple[list[Outcome], float]:
    """Send `samples[i]` at `times[i]`, in seconds from now, or when there is room. Tells `ended` of each.

    Returns the outcomes in the samples' order, and the seconds that all took.
    """
    room = asyncio.Semaphore(max_concurrency) if max_concurrency else contextlib.nullcontext()
    begun = time.perf_counter()

    async def one(sample: Sample, at: float) -> Outcome:
        await asyncio.sleep(max(0.0, at - (time.perf_counter() - begun)))
        async with room:
            outcome = await send(client, target, sample)
        ended(outcome)
        return outcome

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(sample, at)) for sample, at in zip(samples, times, strict=True)]
    return [task.result() for task in tasks], time.perf_counter() - begun
