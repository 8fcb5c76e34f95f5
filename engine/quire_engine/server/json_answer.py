"""Answers as JSON, however large: written in a thread, a part at a time, so that other requests need not wait.

A thread alone would not do. pydantic holds Python's lock until all is written, and an answer may have millions of
numbers, or a hundred thousand logprobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator

import msgspec
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

# What is written while the lock is held takes some milliseconds, at most.
_VALUES = 4096  # numbers or strings
_ENTRIES = 64  # dictionaries, of a hundred values each
_BLOCK_BYTES = 256 * 1024


async def json_answer(made: Awaitable[BaseModel]) -> Response:
    """A response that holds the model which is made."""
    answer = await made
    return _Blocks(await asyncio.to_thread(lambda: list(_blocks(json_parts(answer)))))


def json_parts(value: object, *, only_set: bool = False) -> Iterator[bytes]:
    """`value`, of models, dictionaries, lists and what `msgspec` writes, as JSON in parts.

    With `only_set` of models only the fields that were given, as pydantic's `exclude_unset`.
    """
    if isinstance(value, BaseModel):
        names = [n for n in type(value).model_fields if not only_set or n in value.model_fields_set]
        yield from json_parts({name: getattr(value, name) for name in names}, only_set=only_set)
    elif isinstance(value, dict):
        yield b"{"
        for i, (key, one) in enumerate(value.items()):
            yield b"," * (i > 0) + msgspec.json.encode(str(key)) + b":"
            yield from json_parts(one, only_set=only_set)
        yield b"}"
    elif isinstance(value, list) and value:
        yield b"["
        yield from _items(value, only_set)
        yield b"]"
    else:
        yield msgspec.json.encode(value)


def _items(values: list[object], only_set: bool) -> Iterator[bytes]:
    kinds = set(map(type, values))
    if any(issubclass(kind, BaseModel | list) for kind in kinds):
        for i, value in enumerate(values):
            if i:
                yield b","
            yield from json_parts(value, only_set=only_set)
        return
    step = _ENTRIES if dict in kinds else _VALUES
    for i in range(0, len(values), step):
        if i:
            yield b","
        yield msgspec.json.encode(values[i : i + step])[1:-1]


def _blocks(parts: Iterator[bytes]) -> Iterator[bytes]:
    """The parts in few pieces, none of which is long."""
    block = bytearray()
    for part in parts:
        block += part
        if len(block) >= _BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    yield bytes(block)


class _Blocks(Response):
    """Sends its body block by block, no faster than the client takes it."""

    media_type = "application/json"

    def __init__(self, blocks: list[bytes]) -> None:
        super().__init__(headers={"content-length": str(sum(map(len, blocks)))})
        self._blocks = blocks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for i, block in enumerate(self._blocks, 1):
            await send({"type": "http.response.body", "body": block, "more_body": i < len(self._blocks)})
