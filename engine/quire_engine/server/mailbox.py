"""Where what the engine made for an API request waits for whoever sends it on."""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from dataclasses import dataclass, field

import msgspec

from quire_engine.core.messages import EngineOutput
from quire_engine.server.errors import ApiError

MOST_AT_HAND = 256
"""Outputs that wait as they came. With 20 logprobs a token's takes 2 KiB, and packed with others a tenth of that."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[EngineOutput]).decode


@dataclass
class Mailbox:
    """The outputs of one API request, of one or more sequences. A reader who falls behind finds them all, in order."""

    failure: ApiError | None = None
    _at_hand: list[EngineOutput] = field(default_factory=list)
    _packed: deque[bytes] = field(default_factory=deque)  # what came before, the oldest first
    _waiting: asyncio.Future[None] | None = None  # of a reader, until it goes on

    async def take(self) -> list[EngineOutput]:
        """What has come since the last call, or of much the oldest part; waits for at least one.

        Raises `ApiError` on failure, after all that came before it.
        """
        while not self._at_hand and not self._packed:
            if self.failure is not None:
                raise self.failure
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        if self._packed:
            return _decode(zlib.decompress(self._packed.popleft()))
        taken, self._at_hand = self._at_hand, []
        return taken

    def put(self, output: EngineOutput) -> None:
        # While a reader waits, all of a step comes to it as it is: it is not behind.
        if len(self._at_hand) >= MOST_AT_HAND and self._waiting is None:
            self._packed.append(zlib.compress(_encode(self._at_hand), 1))
            self._at_hand = []
        self._at_hand.append(output)
        self._wake()

    def fail(self, failure: ApiError) -> None:
        self.failure = failure
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
