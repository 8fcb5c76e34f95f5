"""The messages between the server process and the engine process, as tagged msgspec structs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from quire_engine.config import EngineConfig
from quire_engine.core.messages import EngineInfo, EngineOutput, EngineRequest, EngineStats, Vocabulary


class LaunchOptions(msgspec.Struct):
    """What the server process hands over on standard input."""

    config: EngineConfig
    socket_folder: str
    log_level: str = "info"
    log_format: str = "text"
    parent_pid: int = 0
    launched: float = 0.0  # time.monotonic() as the engine process was started: one clock on one machine


def input_address(folder: str | Path) -> str:
    return f"ipc://{folder}/to-engine"


def output_address(folder: str | Path) -> str:
    return f"ipc://{folder}/from-engine"


class Add(msgspec.Struct, tag=True):
    requests: list[EngineRequest]


class Learn(msgspec.Struct, tag=True):
    """What grammars are compiled for, before the first request that needs one."""

    vocabulary: Vocabulary


class LoadAdapter(msgspec.Struct, tag=True):
    """Is answered by an `AdapterDone` with the same ticket."""

    ticket: int
    name: str
    path: str
    replace_it: bool = False


class AdapterPrepared(msgspec.Struct, tag=True):
    """The engine process to itself: a thread has done what is long in loading an adapter."""

    ticket: int


class UnloadAdapter(msgspec.Struct, tag=True):
    """Likewise."""

    ticket: int
    name: str


class Abort(msgspec.Struct, tag=True):
    request_ids: list[str]


class Ping(msgspec.Struct, tag=True):
    """Asks for a Pong, so that an idle engine can show that it lives."""


class Stop(msgspec.Struct, tag=True):
    """Ends the engine process."""


class Phase(msgspec.Struct, tag=True):
    """A part of the start that has ended, and the seconds it took."""

    name: str
    seconds: float


class ModelRead(msgspec.Struct, tag=True):
    """What is known once config.json is read, and the weights are still to be loaded."""

    directory: str
    vocab_size: int


class Ready(msgspec.Struct, tag=True):
    info: EngineInfo


class StepDone(msgspec.Struct, tag=True):
    outputs: list[EngineOutput]
    stats: EngineStats


class Pong(msgspec.Struct, tag=True):
    stats: EngineStats


class AdapterDone(msgspec.Struct, tag=True):
    ticket: int
    error: str | None = None  # what was wrong: nothing has changed then


class Failed(msgspec.Struct, tag=True):
    """The engine cannot go on. `message` is `Reason: one line`, the Reason in CamelCase."""

    message: str


class Released(msgspec.Struct, tag=True):
    """On a node that follows another: that one has ended, as it was asked to, and so does this one."""


ToEngine = Add | Learn | LoadAdapter | AdapterPrepared | UnloadAdapter | Abort | Ping | Stop
FromEngine = Phase | ModelRead | Ready | StepDone | Pong | AdapterDone | Failed | Released

encode: Callable[[ToEngine | FromEngine], bytes] = msgspec.msgpack.Encoder().encode
decode_to_engine: Callable[[bytes], ToEngine] = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine: Callable[[bytes], FromEngine] = msgspec.msgpack.Decoder(FromEngine).decode
