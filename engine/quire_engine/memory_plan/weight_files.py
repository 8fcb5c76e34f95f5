"""Which files of a checkpoint's directory hold its weights."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from quire_engine.memory_plan.safetensors_header import TensorHeader, tensor_bytes, tensor_headers

CONVERT = "convert the weights to safetensors, which transformers' save_pretrained writes"
"""What to do about weights in any other format."""

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files, in order: those that the index names, else model.safetensors, else all.

    Raises `ValueError` when there are none or when one is missing.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{index} is not an index of safetensors files ({error!r})") from error
        files = [directory / name for name in names]
    elif (directory / "model.safetensors").is_file():
        files = [directory / "model.safetensors"]
    else:
        files = [f for f in sorted(directory.glob("*.safetensors")) if not f.name.startswith("consolidated")]
    if not files:
        others = sorted(f.name for f in directory.iterdir() if f.suffix in (".bin", ".pt", ".pth", ".gguf"))
        found = f", only {others[0]}" if others else ""
        raise ValueError(f"{directory} has no safetensors files{found}: {CONVERT}")
    missing = [f.name for f in files if not f.is_file()]
    if missing:
        raise ValueError(f"{directory} lacks {missing[0]}, one of {len(files)} files of its index: download it again")
    return files


def checkpoint_bytes(directory: Path) -> int:
    """Bytes of all weights in `directory`, from the files' headers. Raises `ValueError` on a broken file."""
    return sum(sum(tensor_bytes(file).values()) for file in weight_files(directory))


def checkpoint_headers(directory: Path) -> dict[str, TensorHeader]:
    """All tensors in `directory`, by name. Raises `ValueError` on a broken file."""
    return {name: tensor for file in weight_files(directory) for name, tensor in tensor_headers(file).items()}


def names_dtype(config: Mapping[str, object]) -> bool:
    """Whether config.json's content names a type of the weights, for all of the model or for its decoder."""
    parts = (config, config.get("text_config"))
    return any(isinstance(part, Mapping) and bool(part.get("dtype") or part.get("torch_dtype")) for part in parts)


def with_dtype(config: Mapping[str, object], tensors: Mapping[str, TensorHeader]) -> dict[str, object]:
    """config.json's content, with the type of most of the float weights where it names none."""
    elements: Counter[str] = Counter()
    for tensor in tensors.values():
        if tensor.dtype in _DTYPES:
            elements[_DTYPES[tensor.dtype]] += math.prod(tensor.shape)
    if names_dtype(config) or not elements:
        return dict(config)
    return {**config, "dtype": elements.most_common(1)[0][0]}
