"""A server for clients of others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.server.conftest import Server, launch


@pytest.fixture(scope="package")
def server(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ("--served-model-name=tiny", "--enable-auto-tool-choice", "--tool-call-parser=hermes")
    started = launch(tmp_path_factory.mktemp("server"), tiny_model_dir, *flags)
    started.wait_until_ready()
    yield started
    started.stop()
