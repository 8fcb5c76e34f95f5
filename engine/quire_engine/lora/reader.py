"""Adapters as peft saves them: a folder with adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from quire_engine.core.adapters import StoredAdapter, StoredTensor
from quire_engine.loading.adapter_settings import AdapterSettings, adapter_settings
from quire_engine.loading.errors import CheckpointError
from quire_engine.lora.targets import Target, adapter_targets, linears_of, module_in_file, naming_for, tensor_in_file
from quire_engine.memory_plan.image_adapter import SETTINGS, WEIGHTS
from quire_engine.memory_plan.safetensors_header import TensorHeader, tensor_headers
from quire_engine.models.decoder import DecoderSpec

_FLOATS = {"F32": 4, "F16": 2, "BF16": 2}  # by name, with their bytes
_HALVES = ("lora_A.weight", "lora_B.weight")


class AdapterReader:
    """Reads adapters for one model, and holds them against it: what does not fit never reaches a rank."""

    def __init__(self, spec: DecoderSpec, max_rank: int) -> None:
        self._naming, self._max_rank = spec.naming, max_rank
        self._linears = linears_of(spec)

    def read(self, path: str) -> StoredAdapter:
        """The adapter in the folder `path`. Raises `ValueError` that names the file and what is wrong in it."""
        try:
            folder = Path(path).expanduser()
            found = folder.is_dir()
            lacks = next((name for name in (SETTINGS, WEIGHTS) if not (folder / name).is_file()), None)
            other = lacks == WEIGHTS and (folder / "adapter_model.bin").is_file()
        except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have, or no user, or no right
            reason = f" ({error.strerror})" if isinstance(error, OSError) else ""
            raise ValueError(f"there is no folder {path} to be read{reason}: name the one with {SETTINGS}") from error
        if not found:
            raise ValueError(f"there is no folder {path}: name the one with {SETTINGS}")
        if lacks is not None:
            hint = ": adapter_model.bin is not read, save it as safetensors" if other else ""
            raise ValueError(f"{folder} lacks {lacks}{hint}")
        try:
            settings = adapter_settings(folder)
            headers = tensor_headers(folder / WEIGHTS)
            scales = self._scales(settings, headers)
            content = _content(folder / WEIGHTS, headers)
        except (CheckpointError, OSError, MemoryError, RecursionError) as error:
            text = str(error) or type(error).__name__
            raise ValueError(text if str(folder) in text else f"{folder}: {text}") from error
        except ValueError as error:
            text = str(error)
            raise ValueError(text if str(folder) in text else f"{folder / WEIGHTS}: {text}") from error
        tensors = {
            name: StoredTensor(header.dtype, (header.shape[0], header.shape[1]), header.start)
            for name, header in headers.items()
        }
        return StoredAdapter(content, tensors, scales)

    @property
    def num_bytes(self) -> int:
        """What the largest file takes while it is read: every linear's change, of the largest rank, in float32."""
        return sum(self._max_rank * (rows + columns) for _, (rows, columns) in self._linears) * _FLOATS["F32"]

    def _scales(self, settings: AdapterSettings, headers: Mapping[str, TensorHeader]) -> dict[str, float]:
        """By module. Raises `ValueError` for a tensor that the model has no place for."""
        modules = dict.fromkeys(self._module(name) for name in headers)
        if not modules:
            raise ValueError("it holds no tensors")
        naming = naming_for(self._naming, modules)
        targets = adapter_targets(self._linears, naming)
        for module in modules:
            target = targets.get(module)
            if target is None:
                raise ValueError(_unknown(module))
            self._check(module, target, settings.rank_of(module), headers)
        return {module: settings.scale(module) for module in modules}

    def _module(self, tensor: str) -> str:
        module, half = module_in_file(tensor)
        if half not in _HALVES:
            raise ValueError(
                f"{tensor} is neither lora_A nor lora_B of a linear: only these are supported, and no embeddings, "
                "heads, biases or magnitudes"
            )
        return module

    def _check(self, module: str, target: Target, rank: int, headers: Mapping[str, TensorHeader]) -> None:
        if rank > self._max_rank:
            raise ValueError(f"{module} has the rank {rank} and --max-lora-rank is {self._max_rank}: raise it")
        for half, shape in (("lora_A", (rank, target.in_features)), ("lora_B", (target.out_features, rank))):
            name = tensor_in_file(module, half)
            stored = headers.get(name)
            if stored is None:
                raise ValueError(f"{name} is missing")
            if stored.shape != shape:
                raise ValueError(
                    f"{name} has the shape {list(stored.shape)}: {SETTINGS} and the model ask for {list(shape)}"
                )
            if stored.dtype not in _FLOATS:
                raise ValueError(f"{name} has the type {stored.dtype}: it must be one of {', '.join(_FLOATS)}")
            size = math.prod(shape) * _FLOATS[stored.dtype]
            if stored.size != size:  # else a file with holes might be longer than memory
                raise ValueError(f"{name} has {stored.size} bytes in the file: its shape and type ask for {size}")


def _content(file: Path, headers: Mapping[str, TensorHeader]) -> bytearray:
    """What follows the header. Raises `ValueError` where `headers`, whose sizes add up, have tensors overlap."""
    end = 0
    for name, header in sorted(headers.items(), key=lambda item: item[1].start):
        if header.start != end:
            raise ValueError(f"{name} begins at byte {header.start}, and what is before it ends at {end}: invalid")
        end += header.size
    content = bytearray(end)
    with file.open("rb") as stream:
        stream.seek(-end, os.SEEK_END)
        if stream.readinto(content) != end:
            raise ValueError("it was cut off while it was read: load it again")
    return content


def _unknown(module: str) -> str:
    if ".experts" in module:
        return f"{module} is of a mixture's experts, which adapters cannot change here"
    return f"{module} is no linear of the model's layers that an adapter can change"
