"""How a checkpoint's prompts become vectors: sentence-transformers' files, and what is usual without them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quire_engine.core.pooling import Pooling
from quire_engine.loading.checkpoint import Checkpoint
from quire_engine.loading.errors import CheckpointError
from quire_engine.memory_plan.architectures import ENCODERS, makes_embeddings
from quire_engine.memory_plan.model_shape import ModelShape

Over = Literal["last", "mean", "first"]

_MODES: dict[str, Over] = {
    "lasttoken": "last",
    "mean": "mean",
    "mean_tokens": "mean",
    "cls": "first",
    "cls_token": "first",
}
_BUILT = "cls_token, mean_tokens and lasttoken are supported"


@dataclass(frozen=True)
class SentenceTransformer:
    """What modules.json and the files that it names say."""

    over: Over
    normalised: bool
    max_tokens: int | None  # of a prompt

    @staticmethod
    def of_directory(directory: Path) -> SentenceTransformer | None:
        """None where there is no modules.json. Raises `CheckpointError` for modules that are not built."""
        if not (directory / "modules.json").is_file():
            return None
        over: Over | None = None
        normalised = False
        for module in _read_list(directory / "modules.json"):
            kind = str(module.get("type")).rpartition(".")[2]
            if kind == "Pooling":
                over = _over(directory / str(module.get("path")) / "config.json")
            elif kind == "Normalize":
                normalised = True
            elif kind != "Transformer":
                raise _wrong(
                    directory / "modules.json", f"has a {kind}: Transformer, Pooling and Normalize are supported"
                )
        if over is None:
            raise _wrong(directory / "modules.json", "has no Pooling")
        settings = directory / "sentence_bert_config.json"
        longest = _read(settings).get("max_seq_length") if settings.is_file() else None
        return SentenceTransformer(over, normalised, longest if isinstance(longest, int) and longest > 0 else None)


def pooling_of(checkpoint: Checkpoint, shape: ModelShape, task: str) -> tuple[Pooling | None, int | None]:
    """How the model pools, None where it generates, and the longest prompt that its makers meant it for.

    `task` is --task's. Raises `CheckpointError`, and `ValueError` where the model cannot do the task.
    """
    headless = makes_embeddings(shape.architecture)
    if task == "generate":
        if headless:
            raise ValueError(f"--task is generate and {shape.architecture} has no output head: set --task embed")
        return None, None
    found = SentenceTransformer.of_directory(checkpoint.directory)
    if task == "auto" and not headless and found is None:
        return None, None
    if found is None:
        found = SentenceTransformer("first" if shape.architecture in ENCODERS else "last", True, None)
    dimensions = _dimensions(checkpoint.config, shape.hidden_size)
    pooling = Pooling(over=found.over, normalised=found.normalised, size=shape.hidden_size, dimensions=dimensions)
    return pooling, found.max_tokens


def _over(file: Path) -> Over:
    settings = _read(file)
    mode = settings.get("pooling_mode")
    prefix = "pooling_mode_"
    chosen = (
        [mode]
        if isinstance(mode, str)
        else [name.removeprefix(prefix) for name, on in settings.items() if name.startswith(prefix) and on is True]
    )
    if len(chosen) != 1 or chosen[0] not in _MODES:
        raise _wrong(file, f"pools by {' and '.join(chosen) or 'nothing'}: one of {_BUILT}")
    return _MODES[chosen[0]]


def _dimensions(config: Mapping[str, object], size: int) -> tuple[int, ...]:
    """The sizes that config.json lets vectors be cut to, as vLLM reads it."""
    listed = config.get("matryoshka_dimensions")
    if isinstance(listed, list):
        return tuple(sorted(n for n in listed if isinstance(n, int) and 0 < n <= size))
    return tuple(range(1, size + 1)) if config.get("is_matryoshka") is True else ()


def _read(file: Path) -> dict[str, object]:
    content = _parsed(file)
    if not isinstance(content, dict):
        raise _wrong(file, "holds no JSON object")
    return content


def _read_list(file: Path) -> list[dict[str, object]]:
    content = _parsed(file)
    if not isinstance(content, list) or not all(isinstance(module, dict) for module in content):
        raise _wrong(file, "holds no list of JSON objects")
    return content


def _parsed(file: Path) -> object:
    try:
        content: object = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _wrong(file, f"cannot be read as JSON: {error}") from error
    return content


def _wrong(file: Path, what: str) -> CheckpointError:
    return CheckpointError("InvalidCheckpoint", f"{file} {what}")
