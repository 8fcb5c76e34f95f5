"""Where checkpoints keep an adapter that prompts with images are computed with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quire_engine.memory_plan.safetensors_header import TensorHeader, tensor_headers

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FOLDERS = {"Phi4MultimodalForCausalLM": "vision-lora"}


def adapter_folder(architecture: object) -> str | None:
    """The adapter's folder in checkpoints of a class that may have one."""
    return _FOLDERS.get(architecture) if isinstance(architecture, str) else None


def adapter_weights(config: Mapping[str, object]) -> str | None:
    """Where the weights of such an adapter are, for a config.json, if there are any."""
    architectures = config.get("architectures")
    folder = adapter_folder(architectures[0]) if isinstance(architectures, list) and architectures else None
    return None if folder is None else f"{folder}/{WEIGHTS}"


def adapter_headers(directory: Path, config: Mapping[str, object]) -> dict[str, TensorHeader]:
    """The tensors of the adapter in `directory`, by name. Raises `ValueError` on a broken file."""
    name = adapter_weights(config)
    return tensor_headers(directory / name) if name is not None and (directory / name).is_file() else {}
