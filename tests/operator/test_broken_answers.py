"""What nobody expected while something is looked up leaves no service waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kopf import ConnectionInfo

from quire_operator.api import LLMService
from quire_operator.kubeapi.client import Client
from quire_operator.kubeapi.errors import UnreachableError
from quire_operator.kubeapi.reflector import Key
from quire_operator.kubeapi.resources import CLAIMS
from quire_operator.run.environments import Environments
from quire_operator.run.node_gpus import NodeGPUs
from quire_operator.run.request_lengths import RequestLengths
from tests.operator.services import service

ASKER = ("default", "llama")


class Broken:
    """Answers as nobody expects."""

    async def get(self, *_: object) -> dict[str, object]:
        return {}

    async def get_metadata(self, *_: object) -> dict[str, object]:
        return {}

    async def list_metadata(self, *_: object) -> dict[str, object]:
        return {"items": [{}]}


CLIENT = cast(Client, Broken())


def of_claim(told: Callable[[Key], None]) -> Callable[[], object]:
    asked = service(model={"source": "hf://org/name"}, cache={"claimName": "models"})
    return _environment(asked, told)


def of_namespace(told: Callable[[Key], None]) -> Callable[[], object]:
    local = {"hostPath": "/mnt/models"}
    return _environment(service(model={"source": "hf://org/name"}, cache={"local": local}), told)


def of_nodes(told: Callable[[Key], None]) -> Callable[[], object]:
    nodes = NodeGPUs(CLIENT, told)
    return lambda: nodes.labels(ASKER)


def _environment(asked: LLMService, told: Callable[[Key], None]) -> Callable[[], object]:
    environments = Environments(CLIENT, (), told, RequestLengths("", told))
    return lambda: environments.of(asked)


@pytest.mark.parametrize("looked_up", [of_claim, of_namespace, of_nodes])
async def test_who_waits_is_told_and_goes_on_without(
    looked_up: Callable[[Callable[[Key], None]], Callable[[], object]],
) -> None:
    told: asyncio.Queue[Key] = asyncio.Queue()
    ask = looked_up(told.put_nowait)
    assert ask() is None
    assert await asyncio.wait_for(told.get(), 10) == ASKER
    assert ask() is not None


async def test_an_answer_that_is_no_json_is_none_of_the_api_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def proxy(request: web.Request) -> web.Response:
        return web.Response(text="<html>sign in</html>", content_type="text/html")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", proxy)
    async with TestServer(app) as server:
        info = ConnectionInfo(server=str(server.make_url("")))
        monkeypatch.setattr("quire_operator.kubeapi.client.login", lambda: info)
        async with Client() as client:
            with pytest.raises(UnreachableError):
                await client.get(CLAIMS, "default", "models")
            with pytest.raises(UnreachableError):
                await client.discover("")
