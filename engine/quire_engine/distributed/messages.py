"""What passes between rank 0 and the other ranks beside tensors, as tagged msgspec structs: never pickled."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from quire_engine.config import EngineConfig
from quire_engine.core.adapters import StoredAdapter
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


class Record(msgspec.Struct, tag=True):
    """Has steps of decodes recorded, in `room` bytes of each device: see `Recording`."""

    room: int


class Prepare(msgspec.Struct, tag=True):
    """Begins to make of an adapter, which rank 0 has held against the model, what steps take."""

    number: int
    adapter: StoredAdapter


class Adopt(msgspec.Struct, tag=True):
    """Has the steps that follow compute with an adapter that is prepared, or soon will be."""

    number: int


class Unload(msgspec.Struct, tag=True):
    number: int


class Release(msgspec.Struct, tag=True):
    """Ends a rank. `cause` is why, where it is not because the engine was asked to end."""

    cause: str | None = None


class Failed(msgspec.Struct, tag=True):
    """A rank cannot go on. `message` is `Reason: one line`."""

    rank: int
    message: str
    by_another: bool = False  # it only noticed that another rank had gone


ToRank = Run | Record | Prepare | Adopt | Unload | Release
FromRank = Failed

encode: Callable[[ToRank | FromRank], bytes] = msgspec.msgpack.Encoder().encode
decode_to_rank: Callable[[bytes], ToRank] = msgspec.msgpack.Decoder(ToRank).decode
decode_from_rank: Callable[[bytes], FromRank] = msgspec.msgpack.Decoder(FromRank).decode
