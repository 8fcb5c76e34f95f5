"""What passes between rank 0 and the other ranks beside tensors, as tagged msgspec structs: never pickled."""

from __future__ import annotations

import msgspec

from quire_engine.config import EngineConfig
from quire_engine.core.step import Step


class RankOptions(msgspec.Struct):
    """What a rank's process is given on standard input by the process that starts it."""

    config: EngineConfig
    rank: int
    host: str  # where rank 0's store listens
    port: int
    parent_pid: int
    log_level: str = "warning"
    log_format: str = "text"


class Run(msgspec.Struct, tag=True):
    step: Step


class Release(msgspec.Struct, tag=True):
    """Ends a rank. `cause` is why, where it is not because the engine was asked to end."""

    cause: str | None = None


class Failed(msgspec.Struct, tag=True):
    """A rank cannot go on. `message` is `Reason: one line`."""

    rank: int
    message: str
    by_another: bool = False  # it only noticed that another rank had gone


ToRank = Run | Release
FromRank = Failed

_encoder = msgspec.msgpack.Encoder()
_to_rank: msgspec.msgpack.Decoder[ToRank] = msgspec.msgpack.Decoder(ToRank)
_from_rank: msgspec.msgpack.Decoder[FromRank] = msgspec.msgpack.Decoder(FromRank)


def encode(message: ToRank | FromRank) -> bytes:
    return _encoder.encode(message)


def decode_to_rank(data: bytes) -> ToRank:
    return _to_rank.decode(data)


def decode_from_rank(data: bytes) -> FromRank:
    return _from_rank.decode(data)
