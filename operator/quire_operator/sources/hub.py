"""A model of a Hugging Face hub, read in a few kB: config.json, the index, and the header of each safetensors file."""

from __future__ import annotations

import asyncio
import json
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from quire_engine.memory_plan.image_adapter import adapter_weights
from quire_engine.memory_plan.model_facts import ModelFacts
from quire_engine.memory_plan.safetensors_header import LENGTH_BYTES, TensorHeader, header_length, parse_header

SECONDS = 10.0
"""How long a model may take to be read, all files together."""

_CONFIG_BYTES = 1 << 20
_INDEX_BYTES = 64 << 20
_HEADER_BYTES = 32 << 20
_FILES = 1024
_AT_ONCE = 8
_REFUSED = (401, 403)
_OVERLOADED = (429, 502, 503, 504)


class HubError(Exception):
    """Why a model could not be read; `reason` is one CamelCase word."""

    def __init__(self, reason: str, message: str, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.unreachable = unreachable
        """The hub itself gave no answer, so that no other model can be read from it either."""


@dataclass(frozen=True)
class HubModel:
    """One repository at one revision."""

    endpoint: str
    repository: str
    revision: str


@dataclass(frozen=True)
class _Part:
    body: bytes
    commit: str | None


async def read_model(session: aiohttp.ClientSession, model: HubModel, token: str | None = None) -> ModelFacts:
    """Read what a plan needs, within 10 s. Raises HubError."""
    reader = _Reader(session, model, token)
    try:
        async with asyncio.timeout(SECONDS):
            return await reader.facts()
    except TimeoutError:
        text = f"{model.endpoint} did not answer within {SECONDS:.0f} s"
        raise HubError("HubUnreachable", text, unreachable=not reader.was_answered) from None
    except (aiohttp.ClientError, ConnectionError) as error:
        text = f"{model.endpoint} cannot be reached ({type(error).__name__})"
        raise HubError("HubUnreachable", text, unreachable=not reader.was_answered) from None
    except ValueError as error:
        raise HubError("UnknownModel", f"{model.repository}: {error}") from None


class _Reader:
    def __init__(self, session: aiohttp.ClientSession, model: HubModel, token: str | None) -> None:
        self._session, self._model = session, model
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._revision = model.revision
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self.was_answered = False
        """A later failure is then this model's, and not the hub's."""

    async def facts(self) -> ModelFacts:
        text = await self._part("config.json", 0, _CONFIG_BYTES)
        if text is None:
            raise HubError("UnknownModel", f"{self._model.repository} has no config.json")
        if text.commit:
            self._revision = text.commit  # the branch may move between two reads
        config = _json_object(text.body, "config.json")
        files = await self._files()
        headers = await asyncio.gather(*(self._header(name) for name in files))
        tensors = {name: tensor for header in headers for name, tensor in header.items()}
        adapter = adapter_weights(config)
        if adapter is not None and await self._part(adapter, 0, LENGTH_BYTES) is not None:
            tensors |= await self._header(adapter)
        return ModelFacts.of(config, tensors, text.commit)

    async def _files(self) -> list[str]:
        index = await self._part("model.safetensors.index.json", 0, _INDEX_BYTES)
        if index is None:
            return ["model.safetensors"]
        where = _json_object(index.body, "model.safetensors.index.json").get("weight_map")
        if not isinstance(where, dict) or not where:
            raise ValueError("model.safetensors.index.json has no weight_map")
        files = sorted({str(name) for name in where.values()})
        if len(files) > _FILES:
            raise ValueError(f"its weights are {len(files)} files, and at most {_FILES} are read")
        return files

    async def _header(self, name: str) -> dict[str, TensorHeader]:
        start = await self._part(name, 0, LENGTH_BYTES)
        if start is None:
            raise ValueError(f"it has no {name}: only safetensors are planned with")
        length = header_length(start.body)
        if length > _HEADER_BYTES:
            raise ValueError(f"the header of {name} has {length} bytes, and at most {_HEADER_BYTES} are read")
        header = await self._part(name, LENGTH_BYTES, length)
        if header is None or len(header.body) < length:
            raise ValueError(f"{name} was cut off")
        return parse_header(header.body)

    async def _part(self, name: str, start: int, length: int) -> _Part | None:
        """At most `length` bytes of a file; None when there is no such file."""
        revision = urllib.parse.quote(self._revision, safe="")
        url = f"{self._model.endpoint}/{self._model.repository}/resolve/{revision}/{urllib.parse.quote(name)}"
        headers = {**self._headers, "Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        async with self._slots, self._session.get(url, headers=headers) as response:
            self._complain(response)
            self.was_answered = True
            # weights are on another server, and only the hub's own answer names the commit
            commits = [answer.headers.get("X-Repo-Commit") for answer in (*response.history, response)]
            commit = next((text for text in commits if text), None)
            if response.status == 404:
                return None
            # one that knows no ranges sends the file from its beginning
            skipped = start if response.status == 200 else 0
            body = await _at_most(response, skipped + length)
            return _Part(body[skipped:], commit)

    def _complain(self, response: aiohttp.ClientResponse) -> None:
        where = f"{self._model.repository} at {self._model.revision}"
        if response.status in _REFUSED:
            given = "refuses the token for" if self._headers else "wants a token for"
            raise HubError("ModelGated", f"{self._model.endpoint} {given} {where}: gated, private or not there")
        if response.status == 404 and response.headers.get("X-Error-Code", "EntryNotFound") != "EntryNotFound":
            raise HubError("ModelUnknownToHub", f"{self._model.endpoint} has no {where}")
        if response.status >= 400 and response.status != 404:
            text = f"{self._model.endpoint} answers HTTP {response.status}"
            raise HubError("HubUnreachable", text, unreachable=response.status in _OVERLOADED)


async def _at_most(response: aiohttp.ClientResponse, length: int) -> bytes:
    body = bytearray()
    while len(body) < length:
        chunk = await response.content.read(length - len(body))
        if not chunk:
            break
        body += chunk
    if len(body) < length or response.content.at_eof():
        return bytes(body)
    response.close()  # what is left must not be read
    return bytes(body)


def _json_object(body: bytes, name: str) -> Mapping[str, Any]:
    try:
        value = json.loads(body)
    except ValueError as error:
        raise ValueError(f"{name} does not parse, or is too large ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} holds no JSON object")
    return value
