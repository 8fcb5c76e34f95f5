"""A tokenizer's end token is found in its files, whichever of them tells its id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quire_engine.loading.tokenizer_eos import tokenizer_eos

ADDED = {"id": 7, "content": "<end>", "special": True}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"added_tokens_decoder": {"7": {"content": "<end>"}}}},
        {"tokenizer_config": {"eos_token": {"content": "<end>"}}, "added_tokens": {"<end>": 7}},
        {"tokenizer": {"added_tokens": [ADDED], "model": {"vocab": {"a": 0}}}},
        {"tokenizer": {"added_tokens": [], "model": {"vocab": {"<end>": 7}}}},
        {"vocab": {"<end>": 7}},
    ],
)
def test_the_id_is_where_any_file_has_it(files: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    files = files | {"tokenizer_config": {"eos_token": "<end>"} | files.get("tokenizer_config", {})}
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert tokenizer_eos(tmp_path) == 7


@pytest.mark.parametrize(
    "config", [{}, {"eos_token": None}, {"eos_token": "<end>"}, {"eos_token": "<end>", "added_tokens_decoder": [7]}]
)
def test_what_the_files_do_not_tell_is_none(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": 3, "model": {"vocab": [["<end>", -1.0]]}}))
    assert tokenizer_eos(tmp_path) is None


def test_a_directory_without_a_tokenizer_tells_nothing(tmp_path: Path) -> None:
    assert tokenizer_eos(tmp_path / "nowhere") is None
