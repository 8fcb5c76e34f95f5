"""Reading a model from a hub: a few kB by ranges, one commit throughout, and a name for what is wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp.web import Application, AppRunner, FileResponse, Request, Response, StreamResponse, TCPSite
from safetensors.numpy import save_file

from e2e.hub_server import Hub, make_server
from quire_engine.memory_plan.model_facts import ModelFacts
from quire_operator.sources import hub
from quire_operator.sources.hub import HubError, HubModel, read_model
from tests.operator.checkpoints import SMALL, write_checkpoint

StartHub = Callable[..., tuple[str, Hub]]


@pytest.fixture
def start_hub() -> Iterator[StartHub]:
    """Serve directories as repositories; gives the URL and what counts the answers."""
    servers: list[ThreadingHTTPServer] = []

    def start(repositories: dict[str, Path], **options: Any) -> tuple[str, Hub]:
        server = make_server(repositories, host="127.0.0.1", **options)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        handler: Any = server.RequestHandlerClass
        return f"http://127.0.0.1:{server.server_port}", handler.hub

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


async def read(url: str, repository: str = "org/small", revision: str = "main", token: str | None = None) -> ModelFacts:
    async with aiohttp.ClientSession() as session:
        return await read_model(session, HubModel(url, repository, revision), token)


@pytest.mark.parametrize("files", [1, 3])
async def test_a_model_on_the_hub_is_what_it_is_on_disk(tmp_path: Path, start_hub: StartHub, files: int) -> None:
    directory = write_checkpoint(tmp_path, SMALL, files=files)
    url, server = start_hub({"org/small": directory})
    facts = await read(url)
    on_disk = ModelFacts.of_directory(directory)
    assert (facts.shape, facts.weights, facts.longest) == (on_disk.shape, on_disk.weights, on_disk.longest)
    assert facts.commit == server.commit("org/small")
    assert not [name for name in server.sent if "(part)" not in name], "a whole file was sent"


async def test_the_adapter_of_prompts_with_images_is_counted_as_on_disk(tmp_path: Path, start_hub: StartHub) -> None:
    config = SMALL | {"architectures": ["Phi4MultimodalForCausalLM"], "vision_config": {}}
    directory = write_checkpoint(tmp_path, config)
    without = ModelFacts.of_directory(directory).weights.elements
    (directory / "vision-lora").mkdir()
    layer = "base_model.model.model.layers.0.self_attn.o_proj"
    adapter = {f"{layer}.lora_A.weight": np.zeros((8, 64)), f"{layer}.lora_B.weight": np.zeros((64, 8))}
    save_file(adapter, directory / "vision-lora" / "adapter_model.safetensors")
    url, _ = start_hub({"org/small": directory})
    facts = await read(url)
    assert facts.weights == ModelFacts.of_directory(directory).weights
    assert facts.weights.elements == without + 2 * 8 * 64


async def test_a_commit_is_asked_for_as_it_is_written(tmp_path: Path, start_hub: StartHub) -> None:
    url, server = start_hub({"org/small": write_checkpoint(tmp_path, SMALL)})
    commit = server.commit("org/small")
    assert (await read(url, revision=commit)).commit == commit


async def test_a_gated_model_says_that_it_wants_a_token_and_takes_it(tmp_path: Path, start_hub: StartHub) -> None:
    url, _ = start_hub({"org/small": write_checkpoint(tmp_path, SMALL)}, token="secret")
    with pytest.raises(HubError, match="wants a token for org/small") as refused:
        await read(url)
    assert (refused.value.reason, refused.value.unreachable) == ("ModelGated", False)
    with pytest.raises(HubError, match="refuses the token") as refused:
        await read(url, token="wrong")
    assert "wrong" not in str(refused.value)
    assert (await read(url, token="secret")).commit


@pytest.mark.parametrize(
    ("spoil", "reason", "words"),
    [
        (lambda d: (d / "config.json").unlink(), "UnknownModel", "has no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "UnknownModel", "config.json does not parse"),
        (lambda d: (d / "model.safetensors").unlink(), "UnknownModel", "only safetensors are planned with"),
        (lambda d: (d / "model.safetensors").write_bytes(b"<html>"), "UnknownModel", "not a safetensors file"),
        (
            lambda d: (d / "config.json").write_text(json.dumps({**SMALL, "architectures": ["Other"]})),
            "UnknownModel",
            "the architecture Other is not supported",
        ),
    ],
    ids=["no-config", "broken-config", "no-weights", "no-safetensors", "architecture"],
)
async def test_what_cannot_be_planned_is_named(
    tmp_path: Path, start_hub: StartHub, spoil: Callable[[Path], None], reason: str, words: str
) -> None:
    directory = write_checkpoint(tmp_path, SMALL)
    spoil(directory)
    url, _ = start_hub({"org/small": directory})
    with pytest.raises(HubError, match=words) as refused:
        await read(url)
    assert refused.value.reason == reason


@pytest.mark.parametrize(("repository", "revision"), [("org/absent", "main"), ("org/small", "no-such-branch")])
async def test_what_the_hub_does_not_have_is_named(
    tmp_path: Path, start_hub: StartHub, repository: str, revision: str
) -> None:
    url, _ = start_hub({"org/small": write_checkpoint(tmp_path, SMALL)})
    with pytest.raises(HubError, match=f"has no {repository} at {revision}") as refused:
        await read(url, repository, revision)
    assert refused.value.reason == "ModelUnknownToHub"


async def test_a_hub_that_is_not_there_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(HubError, match="cannot be reached") as refused:
        await read(f"http://127.0.0.1:{port}")
    assert refused.value.unreachable


async def test_a_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(HubError, match="did not answer") as refused,
    ):
        await read(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert refused.value.unreachable


@asynccontextmanager
async def web(answer: Callable[[Request], Awaitable[StreamResponse]]) -> AsyncIterator[str]:
    """A server of one's own making on loopback; gives its URL."""
    app = Application()
    app.router.add_get("/{path:.*}", answer)
    runner = AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_weights_on_another_server_are_read_without_showing_it_the_token(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, SMALL)
    seen: list[str | None] = []

    async def files(request: Request) -> StreamResponse:
        seen.append(request.headers.get("Authorization"))
        return FileResponse(directory / "model.safetensors")

    async with web(files) as elsewhere:

        async def hub_answers(request: Request) -> StreamResponse:
            headers = {"X-Repo-Commit": "c" * 40}
            name = request.path.rsplit("/", 1)[1]
            if name == "config.json":
                return Response(body=(directory / name).read_bytes(), headers=headers)
            if name == "model.safetensors":
                assert f"/resolve/{'c' * 40}/" in request.path
                return Response(
                    status=302, headers={**headers, "Location": elsewhere.replace("127.0.0.1", "localhost")}
                )
            return Response(status=404, headers={"X-Error-Code": "EntryNotFound"})

        async with web(hub_answers) as url:
            facts = await read(url, token="secret")
    assert facts.commit == "c" * 40
    assert facts.weights == ModelFacts.of_directory(directory).weights
    assert seen == [None, None]


@pytest.mark.parametrize(("status", "unreachable"), [(503, True), (429, True), (500, False), (418, False)])
async def test_an_overloaded_hub_is_unreachable_for_all_and_a_faulty_model_only_for_its_own(
    status: int, unreachable: bool
) -> None:
    async def answer(_: Request) -> StreamResponse:
        return Response(status=status)

    async with web(answer) as url:
        with pytest.raises(HubError, match=f"HTTP {status}") as refused:
            await read(url)
    assert refused.value.reason == "HubUnreachable"
    assert refused.value.unreachable is unreachable


async def test_a_model_that_stalls_does_not_count_against_its_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_checkpoint(tmp_path, SMALL)
    monkeypatch.setattr(hub, "SECONDS", 0.5)

    async def answer(request: Request) -> StreamResponse:
        if not request.path.endswith("config.json"):
            await asyncio.sleep(60)
        return FileResponse(directory / "config.json")

    async with web(answer) as url:
        with pytest.raises(HubError, match="did not answer") as refused:
            await read(url)
    assert not refused.value.unreachable


async def test_a_hub_that_knows_no_ranges_is_read_no_further_than_needed(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, SMALL)
    with (directory / "model.safetensors").open("r+b") as stream:
        stream.truncate(64 << 20)
    sent = 0

    async def serve(request: Request) -> StreamResponse:
        nonlocal sent
        file = directory / request.path.rsplit("/", 1)[1]
        if not file.is_file():
            return Response(status=404)
        response = StreamResponse()
        await response.prepare(request)
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 16):
                await response.write(chunk)
                sent += len(chunk)
        return response

    async with web(serve) as url:
        facts = await read(url)
    assert facts.parameters == ModelFacts.of_directory(write_checkpoint(tmp_path / "again", SMALL)).parameters
    assert sent < 32 << 20
