"""Models are read once, in the background, and one hub that is away does not hold up a thousand services."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from e2e.hub_server import make_server
from quire_engine.memory_plan.model_facts import ModelFacts
from quire_operator.plan.gpu_memory import Skipped
from quire_operator.run import hub_models
from quire_operator.run.hub_models import HubModels
from quire_operator.sources import hub as hub_source
from quire_operator.sources.hub import HubModel
from tests.operator.checkpoints import SMALL, write_checkpoint
from tests.operator.hub import asked

ASKER = ("default", "llama")


class Askers:
    """A cache, and who was told that an answer is there."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.cache = HubModels(self.told.put_nowait)

    def get(self, model: HubModel, asker: tuple[str, str] = ASKER) -> ModelFacts | Skipped | None:
        return self.cache.get(asker, model, "", _no_token)

    async def answer(self, model: HubModel) -> ModelFacts | Skipped | None:
        """Ask, and again once told."""
        if (known := self.get(model)) is None:
            assert await asyncio.wait_for(self.told.get(), 10) == ASKER
            known = self.get(model)
        return known


async def _no_token() -> str | None:
    return None


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("the awaited state did not come")


@pytest.fixture
async def askers() -> AsyncIterator[Askers]:
    found = Askers()
    async with found.cache:
        yield found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    server = make_server({"org/small": write_checkpoint(tmp_path, SMALL)}, host="127.0.0.1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def small(server: ThreadingHTTPServer, revision: str = "main") -> HubModel:
    return HubModel(f"http://127.0.0.1:{server.server_port}", "org/small", revision)


async def test_a_model_is_read_once_for_all_who_ask(askers: Askers, server: ThreadingHTTPServer) -> None:
    keys = [("default", f"service-{number}") for number in range(50)]
    assert [askers.get(small(server), key) for key in keys] == [None] * 50
    told = {await asyncio.wait_for(askers.told.get(), 10) for _ in keys}
    assert told == set(keys)
    reads = asked(server)
    assert {type(askers.get(small(server), key)) for key in keys} == {ModelFacts}
    assert asked(server) == reads == 3  # config.json, then the length and the text of one header


async def test_what_has_grown_old_is_given_while_it_is_read_again(
    askers: Askers, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_models, "_FRESH_SECONDS", 0.0)
    first = await askers.answer(small(server))
    reads = asked(server)
    assert askers.get(small(server)) == first
    await _until(lambda: asked(server) > reads)
    assert askers.told.empty()  # there is nothing new


async def test_a_hub_that_goes_away_leaves_what_was_learned(
    askers: Askers, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_models, "_FRESH_SECONDS", 0.0)
    first = await askers.answer(small(server))
    server.shutdown()
    server.server_close()
    for _ in range(3):
        assert askers.get(small(server)) == first
        await asyncio.sleep(0.1)  # in which it is asked in vain


async def test_a_commit_is_never_read_again(
    askers: Askers, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_models, "_FRESH_SECONDS", 0.0)
    handler: Any = server.RequestHandlerClass
    commit = handler.hub.commit("org/small")
    await askers.answer(small(server, commit))
    reads = asked(server)
    askers.get(small(server, commit))
    await asyncio.sleep(0.2)
    assert asked(server) == reads


async def test_a_silent_hub_is_waited_for_once_and_not_by_each_model(
    askers: Askers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_source, "SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=200) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        models = [HubModel(endpoint, f"org/model-{number}", "main") for number in range(500)]
        begun = time.monotonic()
        for model in models:
            askers.get(model)
        for _ in models:
            await asyncio.wait_for(askers.told.get(), 60)
        # one after the other, 32 at once, would be 16 times the limit
        assert time.monotonic() - begun < 10 * hub_source.SECONDS
        later = askers.get(HubModel(endpoint, "org/another", "main"))
    assert isinstance(later, Skipped)
    assert later.reason == "HubUnreachable"


async def test_a_hub_that_is_back_is_asked_again(
    askers: Askers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_models, "RETRY_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    model = HubModel(f"http://127.0.0.1:{port}", "org/small", "main")
    assert isinstance(await askers.answer(model), Skipped)
    server = make_server({"org/small": write_checkpoint(tmp_path, SMALL)}, host="127.0.0.1", port=port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        while not isinstance(askers.get(model), ModelFacts):
            await asyncio.wait_for(askers.told.get(), 10)
    finally:
        server.shutdown()
        server.server_close()


async def test_models_of_a_silent_hub_hold_others_back_for_a_while_only(
    askers: Askers, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_models, "_TURN_SECONDS", 0.2)
    monkeypatch.setattr(askers.cache, "_slots", asyncio.Semaphore(1))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        askers.get(HubModel(f"http://127.0.0.1:{silent.getsockname()[1]}", "org/model", "main"))
        await asyncio.sleep(0.05)
        known = await askers.answer(small(server))
    assert isinstance(known, Skipped)
    assert "was not asked yet" in known.message
