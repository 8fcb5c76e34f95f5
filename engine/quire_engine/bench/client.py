"""One streamed request to a server of OpenAI's API, and its times."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from quire_engine.bench.outcome import Outcome
from quire_engine.bench.samples import Sample

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@dataclass(frozen=True)
class Target:
    """Where requests go, and what each says beside its prompt."""

    base_url: str
    model: str
    endpoint: str = COMPLETIONS
    api_key: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_chat(self) -> bool:
        return self.endpoint.endswith("/chat/completions")

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def body(self, sample: Sample) -> dict[str, Any]:
        """The request's JSON."""
        asked: dict[str, Any] = (
            {
                "messages": [{"role": "user", "content": sample.prompt}],
                "max_completion_tokens": sample.output_len,
                "max_tokens": sample.output_len,  # for servers that do not know the newer name
            }
            if self.is_chat
            else {"prompt": sample.prompt, "max_tokens": sample.output_len}
        )
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        return {"model": self.model, **asked, "temperature": 0.0, **streamed, **self.extra}


def session() -> aiohttp.ClientSession:
    """A client that opens as many connections as there are requests, and waits as long as answers take."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, limit_per_host=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=60),
        trust_env=True,
    )


async def send(client: aiohttp.ClientSession, target: Target, sample: Sample) -> Outcome:
    """Send one request and read its answer. Whatever goes wrong is the outcome's `error`."""
    outcome = Outcome(sample.prompt_len, time.perf_counter())
    try:
        async with client.post(
            target.base_url + target.endpoint, json=target.body(sample), headers=target.headers
        ) as answer:
            if answer.status != 200:
                outcome.error = f"{answer.status}: {_said(await answer.text())}"
                return outcome
            await _read(answer, outcome)
    except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError) as error:
        outcome.error = f"{type(error).__name__}: {error}"
    return outcome


async def _read(answer: aiohttp.ClientResponse, outcome: Outcome) -> None:
    last, pieces, counted = outcome.begun, 0, None
    async for data in _events(answer):
        if "error" in data:
            raise ValueError(data["error"]["message"])
        if data.get("usage"):
            counted = int(data["usage"]["completion_tokens"])
        for choice in data.get("choices") or ():
            delta = choice.get("delta")
            text = choice.get("text") if delta is None else _text(delta)
            if text is None or (delta is not None and not text):  # a chat's first event has the role alone
                continue
            now = time.perf_counter()
            if pieces == 0:
                outcome.ttft = now - outcome.begun
            else:
                outcome.itls.append(now - last)
            last, pieces = now, pieces + 1
            outcome.text += text
    outcome.latency = last - outcome.begun
    outcome.output_len = pieces if counted is None else counted
    if pieces == 0:
        outcome.error = "the answer has no token"


def _text(delta: Mapping[str, Any]) -> str:
    return (delta.get("reasoning_content") or delta.get("reasoning") or "") + (delta.get("content") or "")


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream. Raises `ValueError` where it breaks off before its end."""
    rest = b""
    async for chunk in answer.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            if line.startswith(b"data:"):
                yield json.loads(data)
    raise ValueError("the connection broke off before the end of the answer")


def _said(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()[:200]


async def served_models(client: aiohttp.ClientSession, target: Target) -> list[dict[str, Any]]:
    """What the server says that it serves. Raises `ValueError` where it cannot be asked."""
    url = f"{target.base_url}/v1/models"
    try:
        async with client.get(url, headers=target.headers) as answer:
            text = await answer.text()
            if answer.status != 200:
                raise ValueError(f"{url} answered {answer.status}: {_said(text)}")
            models: list[dict[str, Any]] = json.loads(text)["data"]
    except (aiohttp.ClientError, OSError) as error:
        raise ValueError(f"{url} cannot be reached: {error}: is a server running there?") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{url} lists no models: is it a server of OpenAI's API?") from error
    if not models:
        raise ValueError(f"{url} lists no model")
    return models
