"""Answers of millions of numbers: nobody waits while one is written."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import httpx
import pytest
from pydantic import BaseModel

from quire_engine.core.messages import EngineOutput, EngineRequest, EngineStats
from quire_engine.core.pooling import Pooling
from quire_engine.server import json_answer
from quire_engine.server.adapters import Adapters
from quire_engine.server.api_keys import ApiKeys
from quire_engine.server.app import create_app
from quire_engine.server.embeddings import Embeddings
from quire_engine.server.json_answer import json_parts
from quire_engine.server.lifecycle import Lifecycle
from quire_engine.server.logprobs import CompletionLogprobs
from quire_engine.server.mailbox import Mailbox
from quire_engine.server.metrics import Metrics
from quire_engine.server.protocol.chat import ChatChoice, ChatCompletionResponse
from quire_engine.server.protocol.completions import CompletionChoice, CompletionResponse
from quire_engine.server.protocol.embeddings import EmbeddingData, EmbeddingResponse
from quire_engine.server.protocol.usage import Usage
from quire_engine.server.service import Service
from quire_engine.server.settings import ServerSettings

SIZE, COUNT = 4096, 300
VECTOR = [i / 7 for i in range(SIZE)]


def completion(length: int) -> CompletionResponse:
    logprobs = CompletionLogprobs(
        text_offset=[*range(length)],
        token_logprobs=[None, *([-1.5] * (length - 1))],
        tokens=['"é"'] * length,
        top_logprobs=[None, *({f"{i}": -0.1 for i in range(20)} for _ in range(length - 1))],
    )
    choice = CompletionChoice(index=0, text="ü\n", logprobs=logprobs, stop_reason=None)
    entry = {token: {"logprob": -float(token), "rank": token, "decoded_token": "x"} for token in range(20)}
    choice.prompt_logprobs = [None, *([entry] * (length - 1))]  # type: ignore[list-item]  # as they are made
    return CompletionResponse(model="m", choices=[choice, CompletionChoice(index=1, text="")])


def chat(length: int) -> ChatCompletionResponse:
    token = {"token": "a", "logprob": -1e-7, "bytes": [97]}
    choice = ChatChoice.model_validate(
        {
            "index": 0,
            "message": {"content": "a"},
            "logprobs": {"content": [{**token, "top_logprobs": [token] * 20}] * length, "refusal": None},
        }
    )
    return ChatCompletionResponse(model="m", choices=[choice])


def embeddings(length: int) -> EmbeddingResponse:
    data = [EmbeddingData(index=i, embedding=VECTOR[:length]) for i in range(3)]
    return EmbeddingResponse(model="m", data=[*data, EmbeddingData(index=3, embedding="YQ==")], usage=Usage())


@pytest.mark.parametrize("make", [completion, chat, embeddings])
@pytest.mark.parametrize("length", [1, 64, 65, 4096])
def test_the_parts_are_what_pydantic_writes(make: type[BaseModel], length: int) -> None:
    answer = make(length)
    assert json.loads(b"".join(json_parts(answer))) == json.loads(answer.model_dump_json())
    given = json.loads(answer.model_dump_json(exclude_unset=True))
    assert json.loads(b"".join(json_parts(answer, only_set=True))) == given


def test_empty_lists_and_dictionaries_stay_empty() -> None:
    assert b"".join(json_parts({"a": [], "b": {}, "c": [[], {}], "d": None})) == b'{"a":[],"b":{},"c":[[],{}],"d":null}'


@pytest.mark.parametrize("make", [completion, chat, embeddings])
def test_no_part_is_large(make: type[BaseModel]) -> None:
    assert max(map(len, json_parts(make(20_000)))) < 128 * 1024


@dataclass
class Engine:
    """A client whose engine answers at once."""

    failure: str | None = None
    config: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(max_num_seqs=8, scheduling_policy="fcfs", lora_modules=())
    )
    stats: EngineStats = field(default_factory=EngineStats)

    def submit(self, requests: list[EngineRequest], mailbox: Mailbox) -> None:
        for request in requests:
            mailbox.put(EngineOutput(request.request_id, [], "stop", embedding=VECTOR))

    def abort(self, request_ids: list[str]) -> None:
        assert not request_ids

    def seconds_silent(self) -> float:
        return 0.0


class Inputs:
    async def token_ids(self, _: object) -> list[list[int]]:
        return [[1]] * COUNT


async def test_health_answers_while_a_huge_answer_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, answered = threading.Event(), threading.Event()

    def watched(value: object, *, only_set: bool = False) -> Iterator[bytes]:
        assert threading.current_thread() is not threading.main_thread()
        begun.set()
        assert answered.wait(60), "nobody was answered meanwhile"
        yield from json_parts(value, only_set=only_set)

    monkeypatch.setattr(json_answer, "json_parts", watched)
    engine, metrics, lifecycle = Engine(), Metrics("m"), Lifecycle(0.0, 0.0)
    lifecycle.started()
    adapters = Adapters(engine, ("m",), may_change=False)  # type: ignore[arg-type]  # a stand-in
    service = Service(ServerSettings(), ApiKeys(()), lifecycle, metrics, engine, ("m",), adapters)  # type: ignore[arg-type]  # a stand-in
    pooling = Pooling(over="mean", normalised=False, size=SIZE)
    service.embeddings = Embeddings(engine, Inputs(), metrics, pooling)  # type: ignore[arg-type]  # a stand-in
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), base_url="http://a") as client:
        asked = asyncio.create_task(client.post("/v1/embeddings", json={"input": ["a"] * COUNT}))
        assert await asyncio.to_thread(begun.wait, 60)
        assert (await client.get("/health")).status_code == 200
        assert not asked.done()
        answered.set()
        answer = await asyncio.wait_for(asked, 60)
    assert int(answer.headers["content-length"]) == len(answer.content)
    made = answer.json()["data"]
    assert len(made) == COUNT
    assert made[-1] == {"index": COUNT - 1, "object": "embedding", "embedding": VECTOR}
