"""The plans that docs/operations.md shows are what `quire-operator plan` prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from quire_operator.api import KIND, parse_llmservice
from quire_operator.plan.table import plan_table
from quire_operator.settings import Settings
from quire_operator.sources.offline import plan_offline
from tests.docs.pages import Block, blocks
from tests.operator.checkpoints import LLAMA_8B, write_checkpoint

CONFIGS: dict[str, dict[str, Any]] = {
    "llama-8b": LLAMA_8B,
    "llama-70b": {
        **LLAMA_8B,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "llama-405b": {
        **LLAMA_8B,
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
    },
}
SHOWN = [block for block in blocks("text") if re.match(r"[\w-]+: (fits|does not fit)\n", block.text)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of the sizes that the page speaks of, with holes for weights."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, config in CONFIGS.items():
        write_checkpoint(folder / name, config)
    return folder


def test_a_plan_is_shown_that_fits_and_one_that_does_not() -> None:
    assert {block.text.splitlines()[0] for block in SHOWN} >= {"llama-8b: fits", "llama-70b: does not fit"}


@pytest.mark.parametrize("shown", SHOWN, ids=str)
def test_a_plan_that_is_shown_is_what_would_be_printed(shown: Block, checkpoints: Path) -> None:
    name = shown.text.partition(":")[0]
    product = re.findall(r"device +(\S+)", shown.text)[0]
    (example,) = [b for b in blocks("yaml") if f"kind: {KIND}\n" in b.text and f"name: {name}}}" in b.text]
    manifest = yaml.safe_load(example.text)
    manifest["spec"]["resources"]["gpu"]["product"] = product  # the page tells of others beside the example's
    service = parse_llmservice(manifest, strict=True)
    assert plan_table(name, plan_offline(service, Settings(), checkpoints / name)) == shown.text
