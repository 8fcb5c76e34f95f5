"""A checkpoint in a directory of this machine."""

from __future__ import annotations

import json
from pathlib import Path

from quire_engine.memory_plan.weight_files import checkpoint_headers
from quire_operator.plan.model_facts import ModelFacts


def read_directory(directory: Path) -> ModelFacts:
    """Read config.json and the headers of the weights. Raises ValueError that says what is wrong with which file."""
    file = directory / "config.json"
    if not file.is_file():
        raise ValueError(f"{directory} has no config.json: name the directory of a checkpoint")
    config = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds no JSON object")
    return ModelFacts.of(config, checkpoint_headers(directory))
