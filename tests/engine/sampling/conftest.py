"""A small Llama that tests sample from; a module that wants another one has its own `model`."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedModel

from tests.engine.models.checkpoints import FAMILIES, make_model, save


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    cls, config = FAMILIES["llama"]
    return make_model(cls, config())


@pytest.fixture(scope="module")
def model_dir(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(model, tmp_path_factory.mktemp("model"))
