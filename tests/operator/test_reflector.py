"""What is watched is kept, and what may not be watched is not waited for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kopf import ConnectionInfo

from quire_operator.kubeapi import client as client_module
from quire_operator.kubeapi import reflector
from quire_operator.kubeapi.errors import ApiError
from quire_operator.kubeapi.reflector import Reflector
from quire_operator.kubeapi.resources import SCALED_OBJECTS, Resource


class Forbidding:
    """A client whose rights do not cover what is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.thrice = asyncio.Event()

    async def list(self, resource: Resource, namespace: str | None, selector: str = "") -> dict[str, Any]:
        self.asked += 1
        if self.asked == 3:
            self.thrice.set()
        raise ApiError(403, {"reason": "Forbidden", "message": "no"}, "list")


def watching(client: Any, *, may_be_forbidden: bool) -> Reflector:
    return Reflector(
        client, SCALED_OBJECTS, None, "l", lambda item: item, lambda key: None, may_be_forbidden=may_be_forbidden
    )


async def test_what_may_be_forbidden_counts_as_listed_when_it_is_and_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reflector, "_FORBIDDEN_SECONDS", 0.01)
    client = Forbidding()
    optional = watching(client, may_be_forbidden=True)
    running = asyncio.create_task(optional.run())
    await asyncio.wait_for(client.thrice.wait(), 30)
    running.cancel()
    assert optional.listed.is_set()
    assert len([record for record in caplog.records if "RBAC" in record.message]) == 1


async def test_what_is_needed_is_not_taken_as_absent_when_it_is_forbidden() -> None:
    client = Forbidding()
    needed = watching(client, may_be_forbidden=False)
    running = asyncio.create_task(needed.run())
    await asyncio.wait_for(client.thrice.wait(), 30)
    running.cancel()
    assert not needed.listed.is_set()


async def test_a_kind_of_which_nothing_happens_is_watched_on_and_not_listed_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_module, "_SILENCE_SECONDS", 0.05)
    asked: list[str] = []
    thrice = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            asked.append("list")
            return web.json_response({"items": [], "metadata": {"resourceVersion": "7"}})
        asked.append(f"watch from {request.query['resourceVersion']}")
        stream = web.StreamResponse()
        await stream.prepare(request)
        if len(asked) == 3:
            bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}
            await stream.write(json.dumps(bookmark).encode() + b"\n")
        if len(asked) == 4:
            thrice.set()
        await asyncio.sleep(30)  # silent for longer than anybody waits
        return stream

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:
        monkeypatch.setattr(client_module, "login", lambda: ConnectionInfo(server=str(server.make_url("/"))))
        async with client_module.Client() as client:
            running = asyncio.create_task(watching(client, may_be_forbidden=False).run())
            await asyncio.wait_for(thrice.wait(), 30)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    assert asked[:4] == ["list", "watch from 7", "watch from 7", "watch from 9"]
    assert [record for record in caplog.records if record.name.startswith("quire")] == []
