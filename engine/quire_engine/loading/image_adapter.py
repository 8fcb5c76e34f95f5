"""The adapter that a checkpoint has for prompts with images, as peft writes it: a folder with settings and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from quire_engine.layers.adapter import UP, Adapted
from quire_engine.layers.linear import Linear, LinearMethod, Unquantized
from quire_engine.loading.checkpoint import read_json
from quire_engine.loading.errors import CheckpointError
from quire_engine.memory_plan.image_adapter import SETTINGS, WEIGHTS, adapter_folder
from quire_engine.memory_plan.safetensors_header import tensor_headers
from quire_engine.models.naming import Naming

MethodFor = Callable[[str, Linear], LinearMethod]

# What is followed of peft's settings, by what they have to be.
_ONLY: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "fan_in_fan_out": (False,),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
}
_LARGEST = 4096


@dataclass(frozen=True)
class ImageAdapter:
    """An adapter of low rank, and which tensors it has."""

    file: Path
    rank: int
    scale: float
    stored: frozenset[str]


def image_adapter(directory: Path, architecture: str) -> ImageAdapter | None:
    """The adapter in `directory`; None where it has none. Raises `CheckpointError` that says what is wrong in it."""
    name = adapter_folder(architecture)
    if name is None or not (directory / name).is_dir():
        return None
    folder = directory / name
    settings = read_json(folder / SETTINGS)
    for setting, allowed in _ONLY.items():
        if settings.get(setting, allowed[0]) not in allowed:
            raise _wrong(folder, f"{setting} is {settings[setting]!r}: only {allowed[0]!r} is supported")
    rank, alpha = _number(folder, settings, "r"), _number(folder, settings, "lora_alpha")
    if rank != int(rank):
        raise _wrong(folder, f"r is {rank}: it must be a whole number")
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError("InvalidCheckpoint", f"{folder} lacks {WEIGHTS}, the adapter's weights")
    try:
        stored = frozenset(tensor_headers(folder / WEIGHTS))
    except ValueError as error:
        raise CheckpointError("InvalidCheckpoint", str(error)) from error
    scale = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
    return ImageAdapter(folder / WEIGHTS, int(rank), scale, stored)


def with_adapter(adapter: ImageAdapter, naming: Naming, method_for: MethodFor | None) -> MethodFor:
    """The method of each linear, by its path, with the adapter on those that it has tensors for."""

    def adapted(path: str, layer: Linear) -> LinearMethod:
        method = Unquantized() if method_for is None else method_for(path, layer)
        if not path.startswith("model.layers."):
            return method
        stored = any(naming.source(f"{name}.{UP}").name in adapter.stored for name in layer.names(path))
        return Adapted(method, adapter.rank, adapter.scale) if stored else method

    return adapted


def _number(folder: Path, settings: Mapping[str, object], name: str) -> float:
    value = settings.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= _LARGEST:
        raise _wrong(folder, f"{name} is {value!r}: it must be a number above 0, at most {_LARGEST}")
    return float(value)


def _wrong(folder: Path, what: str) -> CheckpointError:
    return CheckpointError("InvalidCheckpoint", f"{folder / SETTINGS}: {what}")
