"""What a model's authors want of its answers: generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quire_engine.loading.checkpoint import Checkpoint, read_json
from quire_engine.loading.errors import CheckpointError
from quire_engine.sampling_params import SamplingParams

_FILE = "generation_config.json"
_WHOLE = ("top_k", "max_new_tokens")
# Of the fields that the file may have, those that a request may leave out, and what a request calls them.
_DEFAULTS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def generation_config(checkpoint: Checkpoint, wanted: str) -> Mapping[str, object]:
    """The file's content, for --generation-config: of the checkpoint, of a directory, or nothing.

    Raises `CheckpointError` for a directory without the file, or where it is no JSON.
    """
    if wanted == "vllm":
        return {}
    file = (checkpoint.directory if wanted == "auto" else Path(wanted)) / _FILE
    if file.is_file():
        return read_json(file)
    if wanted == "auto":
        return {}
    raise CheckpointError(
        "InvalidFlag", f"--generation-config is {wanted}: it must be auto, vllm, or a directory with {_FILE}"
    )


def eos_token_ids(generation: Mapping[str, object], config: Mapping[str, object]) -> tuple[int, ...]:
    """The tokens that end an answer: generation_config.json's, else config.json's, or its decoder's."""
    text = config.get("text_config")
    for source in (generation, config, text if isinstance(text, dict) else {}):
        value = source.get("eos_token_id")
        if isinstance(value, int):
            return (value,)
        if isinstance(value, list) and value:
            return tuple(v for v in value if isinstance(v, int))
    return ()


def sampling_defaults(generation: Mapping[str, object]) -> dict[str, int | float]:
    """What holds for requests that say nothing, by the names of `SamplingParams`. Raises `CheckpointError`."""
    defaults: dict[str, int | float] = {}
    for theirs, ours in _DEFAULTS.items():
        value = generation.get(theirs)
        if value is None:
            continue
        if not isinstance(value, int | float) or (theirs in _WHOLE and not isinstance(value, int)):
            raise CheckpointError("InvalidCheckpoint", f"{_FILE}: {theirs} is {value!r}: it must be a number")
        defaults[ours] = value
    try:
        SamplingParams(**defaults)  # type: ignore[arg-type]  # whole numbers where they must be
    except ValueError as error:
        raise CheckpointError(
            "InvalidCheckpoint", f"{_FILE}: {error}; --generation-config vllm does without the file"
        ) from error
    return defaults
