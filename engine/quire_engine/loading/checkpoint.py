"""A checkpoint's directory and the JSON in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from quire_engine.loading.errors import CheckpointError
from quire_engine.loading.hub import download
from quire_engine.memory_plan.weight_files import checkpoint_headers, names_dtype, with_dtype

# Where older versions of AutoGPTQ and AutoAWQ wrote what is in config.json now.
_QUANTIZATION_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


@dataclass(frozen=True)
class Checkpoint:
    """A directory in Hugging Face's layout. `config` is config.json's content."""

    directory: Path
    config: dict[str, object]

    @staticmethod
    def open(
        model: str, *, revision: str | None = None, download_dir: str | None = None, weights: bool = True
    ) -> Checkpoint:
        """Find `model`, a directory or a name on the hub. Raises `CheckpointError`."""
        directory = _locate(model, revision, download_dir, weights)
        if not (directory / "config.json").is_file():
            raise CheckpointError("InvalidCheckpoint", f"{directory} has no config.json: name a model's directory")
        config = read_json(directory / "config.json")
        for file, method in _QUANTIZATION_FILES.items():
            if not config.get("quantization_config") and (directory / file).is_file():
                config["quantization_config"] = {"quant_method": method} | read_json(directory / file)
        return Checkpoint(directory, _with_dtype(config, directory))


def _with_dtype(config: dict[str, object], directory: Path) -> dict[str, object]:
    if names_dtype(config):
        return config
    try:
        return with_dtype(config, checkpoint_headers(directory))
    except ValueError:  # without weights, or with broken ones, of which loading tells more
        return config


def _locate(model: str, revision: str | None, download_dir: str | None, weights: bool) -> Path:
    if not model:
        raise CheckpointError("ModelNotFound", "--model is empty: it must be a directory or a name such as org/model")
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError("ModelNotFound", f"{model} is a file: name the directory with config.json")
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise CheckpointError("ModelNotFound", f"the directory {model} does not exist: check --model")
    return Path(download(model, revision=revision, folder=download_dir, weights=weights))


def read_json(file: Path) -> dict[str, object]:
    """A file's object. Raises `CheckpointError` where it holds none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError("InvalidCheckpoint", f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError("InvalidCheckpoint", f"{file} holds no JSON object")
    return content
