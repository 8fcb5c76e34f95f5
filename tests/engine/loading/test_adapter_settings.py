"""Ranks and scales by the names of modules, as peft finds them, without holding up who reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft.utils.other import get_pattern_key

from quire_engine.loading import adapter_settings as module
from quire_engine.loading.adapter_settings import AdapterSettings, adapter_settings
from quire_engine.loading.errors import CheckpointError

MODULES = [f"model.layers.{i}.{name}" for i in range(80) for name in ("self_attn.q_proj", "mlp.up_proj")]


def read(folder: Path, **settings: Any) -> AdapterSettings:
    written = {"peft_type": "LORA", "r": 16, "lora_alpha": 32} | settings
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return adapter_settings(folder)


def test_the_first_key_that_a_name_ends_with_decides_as_in_peft(tmp_path: Path) -> None:
    ranks = {"layers.1.self_attn.q_proj": 2, r"layers\.[2-7].*q_proj": 3, "q_proj": 5, "self_attn.q_proj": 7, "proj": 9}
    settings = read(tmp_path, rank_pattern=ranks)
    found = [settings.rank_of(name) for name in MODULES]
    assert found == [ranks.get(get_pattern_key(ranks, name), 16) for name in MODULES]
    assert {2, 3, 5, 16} == set(found)


def test_keys_for_all_modules_are_compiled_once_and_not_for_each_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = read(
        tmp_path,
        rank_pattern={f"vision.{i}.q_proj": 8 for i in range(600)},  # more than `re` keeps
        alpha_pattern={name: 1 + place for place, name in enumerate(MODULES)},
    )
    monkeypatch.setattr(module, "re", None)
    assert [settings.scale(name) for name in MODULES] == [(1 + place) / 16 for place in range(len(MODULES))]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ({f"layers.{i}": 1 for i in range(2049)}, "has 2049 keys: it must have at most 2048"),
        ({f"layers.{i}.*": 1 for i in range(33)}, "has 33 keys with * + ?: it must have at most 32"),
    ],
)
def test_more_keys_than_can_be_held_against_all_modules_are_refused(
    tmp_path: Path, pattern: dict[str, int], message: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, alpha_pattern=pattern)
    assert f"adapter_config.json: alpha_pattern {message}" in str(caught.value)
