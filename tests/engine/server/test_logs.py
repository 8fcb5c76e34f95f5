"""Lines that a person can use: of each answer where they are wanted, and of how busy the server is."""

from __future__ import annotations

import asyncio
import json
import logging
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from quire_engine.core.messages import EngineStats
from quire_engine.sampling_params import SamplingParams
from quire_engine.server import throughput
from quire_engine.server.metrics import Metrics, RequestTimes
from tests.engine.server.conftest import Server, StartServer, until


def lines_of(server: Server, logger: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in server.log.splitlines()]  # of which each is an object, whoever wrote it
    return [line for line in lines if line["logger"].endswith(logger)]


def test_each_answer_has_a_line_where_that_is_wanted(start_server: StartServer) -> None:
    server = start_server("--disable-log-requests=false", "--log-format=json")
    body = {"model": "tiny", "prompt": "Confidential words", "max_tokens": 3, "ignore_eos": True}
    httpx.post(f"{server.url}/v1/completions", json=body, headers={"x-request-id": "mine"}).raise_for_status()
    until(lambda: len(lines_of(server, "request_log")) == 1)
    (line,) = lines_of(server, "request_log")
    assert line["level"] == "info"
    assert line["message"].startswith("mine: length: ")
    assert ", 3 out, " in line["message"]
    assert "Confidential" not in server.log


def test_else_the_lines_are_there_for_who_debugs(start_server: StartServer) -> None:
    body = {"model": "tiny", "prompt": "Return", "max_tokens": 3}
    quiet, loud = start_server("--log-format=json"), start_server("--log-format=json", "--uvicorn-log-level=debug")
    for server in (quiet, loud):
        httpx.post(f"{server.url}/v1/completions", json=body).raise_for_status()
    until(lambda: len(lines_of(loud, "request_log")) == 1)
    assert lines_of(loud, "request_log")[0]["level"] == "debug"
    assert lines_of(quiet, "request_log") == []


async def test_the_throughput_is_told_while_there_is_work_and_only_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert throughput.STATS_SECONDS == 10
    monkeypatch.setattr(throughput, "STATS_SECONDS", 0.01)
    caplog.set_level(logging.INFO, logger=throughput.__name__)
    metrics, client = Metrics("m"), SimpleNamespace(stats=EngineStats())
    service: Any = SimpleNamespace(metrics=metrics, client=client, settings=SimpleNamespace(disable_log_stats=False))

    async def after_some_turns() -> int:
        before = len(caplog.messages)
        await asyncio.sleep(0.2)
        return len(caplog.messages) - before

    following = asyncio.create_task(throughput.follow_throughput(service))
    assert await after_some_turns() == 0
    client.stats = EngineStats(num_running=2, kv_cache_usage=0.5, prefix_cache_queries=4, prefix_cache_hits=1)
    assert await after_some_turns() > 0
    assert caplog.messages[-1] == (
        "prompt 0.0 tok/s, generation 0.0 tok/s, 2 running, 0 waiting, KV cache 50.0% used, prefix cache hits 25.0%"
    )
    client.stats = EngineStats()
    await asyncio.sleep(0.05)
    assert await after_some_turns() == 0
    metrics.observe_tokens(RequestTimes(0.0, 7, SamplingParams()), 3, 1.0)
    assert await after_some_turns() == 1
    assert caplog.messages[-1].startswith("prompt 700.0 tok/s, generation 300.0 tok/s")
    following.cancel()
