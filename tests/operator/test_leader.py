"""A replica that cannot renew its Lease stops before another may take it."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest

from quire_operator.kubeapi.client import Client
from quire_operator.run.leader import Leader, LeadershipLostError

SECONDS = 6


class Hanging:
    """An API server that gives the Lease, and then answers nothing any more."""

    def __init__(self) -> None:
        self._hangs = False

    async def get(self, *_: object) -> None:
        if self._hangs:
            await asyncio.Event().wait()

    async def create(self, _: object, lease: dict[str, Any]) -> dict[str, Any]:
        self._hangs = True
        return lease

    async def replace(self, *_: object) -> None:
        await asyncio.Event().wait()


async def test_an_api_server_that_hangs_ends_the_leadership_while_the_lease_still_holds() -> None:
    leader = Leader(cast(Client, Hanging()), "default", "quire-operator", SECONDS)
    await leader.acquire()
    with pytest.raises(LeadershipLostError, match="could not be renewed for 4 s"):
        await leader.keep()
    assert time.monotonic() - leader.renewed_at < SECONDS
