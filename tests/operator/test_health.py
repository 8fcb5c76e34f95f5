"""/healthz tells of an operator that has gone deaf or is stuck though its process runs, and of nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

import aiohttp
import pytest

from quire_operator.kubeapi.client import Client
from quire_operator.run.health import HealthServer
from quire_operator.run.operator import Operator
from quire_operator.settings import Settings

KEY = ("default", "llama")
LONG = 301.0
"""Seconds: more than any sign of life may be old."""


def operator() -> Operator:
    """One that leads, and has just heard from everything that it watches."""
    found = Operator(cast(Client, None), Settings(), asyncio.Event())
    found._is_leading = True
    return found


def a_quiet_watch_of_children(stuck: Operator) -> None:
    stuck._surroundings._reflectors[0].alive_at -= LONG


def a_quiet_watch_of_downloads(stuck: Operator) -> None:
    stuck._downloads._jobs[0].alive_at -= LONG


def a_watch_of_services_that_never_comes(stuck: Operator) -> None:
    stuck._watch_asked_at = time.monotonic() - LONG


def a_reconcile_that_does_not_end(stuck: Operator) -> None:
    stuck._queue._running[KEY] = time.monotonic() - LONG


def a_service_that_nobody_takes_up(stuck: Operator) -> None:
    stuck._queue.add(KEY, -LONG)


STUCK = {
    "a watch has been silent for 301 s": [a_quiet_watch_of_children, a_quiet_watch_of_downloads],
    "LLMServices have not been watched for 301 s": [a_watch_of_services_that_never_comes],
    "a reconcile has been running for 301 s": [a_reconcile_that_does_not_end],
    "an LLMService has waited to be reconciled for 301 s": [a_service_that_nobody_takes_up],
}


@pytest.mark.parametrize(("words", "get_stuck"), [(words, how) for words, hows in STUCK.items() for how in hows])
async def test_what_is_stuck_is_told_by_the_one_who_leads_alone(
    words: str, get_stuck: Callable[[Operator], None]
) -> None:
    found = operator()
    assert found._troubles() == []
    get_stuck(found)
    assert found._troubles() == [words]
    found._is_leading = False
    assert found._troubles() == []


@pytest.mark.parametrize(
    ("troubles", "status", "text"), [([], 200, "ok\n"), (["one thing", "another"], 503, "one thing\nanother\n")]
)
async def test_the_kubelet_is_told_with_the_reasons(troubles: list[str], status: int, text: str) -> None:
    server = HealthServer(0, lambda: troubles, lambda: None)
    port = await server.start()
    try:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/healthz") as answer:
            assert (answer.status, await answer.text()) == (status, text)
    finally:
        await server.close()
