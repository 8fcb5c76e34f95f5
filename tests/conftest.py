"""Fixtures that several suites share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Triton reads it when it is imported, which any suite may do, and before another one's conftest is read.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A suite that says the same of the same code each time. To search further: --hypothesis-profile=default.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model: trained at most once on a machine, in up to 3 minutes."""
    from quire_engine.tiny.training import tiny_model

    directory = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model(directory)
    return directory
