"""The adapter that a checkpoint has for prompts with images, as peft writes it: a folder with settings and weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quire_engine.layers.adapter import UP, Adapted
from quire_engine.layers.linear import Linear, LinearMethod, Unquantized
from quire_engine.loading.adapter_settings import adapter_settings
from quire_engine.loading.errors import CheckpointError
from quire_engine.memory_plan.image_adapter import SETTINGS, WEIGHTS, adapter_folder
from quire_engine.memory_plan.safetensors_header import tensor_headers
from quire_engine.models.naming import Naming

MethodFor = Callable[[str, Linear], LinearMethod]


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
    settings = adapter_settings(folder)
    if settings.ranks or settings.alphas:
        raise CheckpointError(
            "InvalidCheckpoint", f"{folder / SETTINGS}: rank_pattern or alpha_pattern is set: only {{}} is supported"
        )
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError("InvalidCheckpoint", f"{folder} lacks {WEIGHTS}, the adapter's weights")
    try:
        stored = frozenset(tensor_headers(folder / WEIGHTS))
    except ValueError as error:
        raise CheckpointError("InvalidCheckpoint", str(error)) from error
    return ImageAdapter(folder / WEIGHTS, settings.rank, settings.scale(""), stored)


def with_adapter(adapter: ImageAdapter, naming: Naming, method_for: MethodFor | None) -> MethodFor:
    """The method of each linear, by its path, with the adapter on those that it has tensors for."""

    def adapted(path: str, layer: Linear) -> LinearMethod:
        method = Unquantized() if method_for is None else method_for(path, layer)
        if not path.startswith("model.layers."):
            return method
        stored = any(naming.source(f"{name}.{UP}").name in adapter.stored for name in layer.names(path))
        return Adapted(method, adapter.rank, adapter.scale) if stored else method

    return adapted
