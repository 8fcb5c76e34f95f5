"""The token by which a tokenizer ends texts, read from its files: loading it takes seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from quire_engine.loading.checkpoint import read_json


def tokenizer_eos(directory: Path) -> int | None:
    """The id of tokenizer_config.json's `eos_token`; None where there is none, or the files do not tell.

    Raises `CheckpointError` for a file that is no JSON.
    """
    settings = _object(directory / "tokenizer_config.json")
    token = settings.get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str):
        return None
    found = (ids[token] for ids in _vocabularies(directory, settings) if token in ids)
    return next((number for number in found if isinstance(number, int)), None)


def _vocabularies(directory: Path, settings: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """Ids by token, where they may be found, those that are quick to read first."""
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        yield {str(v.get("content")): int(k) for k, v in decoder.items() if isinstance(v, dict) and k.isdecimal()}
    yield _object(directory / "added_tokens.json")
    tokenizer = _object(directory / "tokenizer.json")
    added = tokenizer.get("added_tokens")
    if isinstance(added, list):
        yield {str(token.get("content")): token.get("id") for token in added if isinstance(token, dict)}
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield vocabulary
    yield _object(directory / "vocab.json")


def _object(file: Path) -> Mapping[str, object]:
    return read_json(file) if file.is_file() else {}
