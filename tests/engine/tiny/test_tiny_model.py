"""The tiny model is small, speaks, and is made once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from quire_engine.tiny.training import Recipe, tiny_model

QUICK = Recipe(steps=3)


def fingerprint(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.iterdir())}


def test_the_same_seed_gives_the_same_files_and_another_one_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for i, recipe in enumerate((QUICK, QUICK, Recipe(steps=3, seed=1))):
        monkeypatch.setenv("QUIRE_CACHE", str(tmp_path / f"cache-{i}"))
        tiny_model(tmp_path / str(i), recipe)
        made.append(fingerprint(tmp_path / str(i)))
    assert made[0] == made[1]
    assert made[0]["model.safetensors"] != made[2]["model.safetensors"]


def test_it_is_trained_once_and_copied_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_CACHE", str(tmp_path / "cache"))
    tiny_model(tmp_path / "first", QUICK)

    def never(*_: object) -> None:
        raise AssertionError("it is trained a second time")

    monkeypatch.setattr("quire_engine.tiny.training._train", never)
    tiny_model(tmp_path / "second", QUICK)
    assert fingerprint(tmp_path / "first") == fingerprint(tmp_path / "second")


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not lose me")
    with pytest.raises(FileExistsError, match="name an empty or a new directory"):
        tiny_model(tmp_path, QUICK)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_it_has_a_few_million_parameters_and_speaks_english_like_text(tiny_model_dir: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_model_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    assert 1_000_000 <= sum(p.numel() for p in model.parameters()) <= 5_000_000
    chat = [{"role": "user", "content": "What is a dict?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0][inputs["input_ids"].shape[1] :]
    words = tokenizer.decode(answer, skip_special_tokens=True).lower().split()
    common = {"the", "a", "is", "of", "to", "in", "that", "and", "object", "string", "return", "value", "class", "be"}
    assert len(common & set(words)) >= 2, words


def test_its_files_name_a_llama_that_any_engine_loads(tiny_model_dir: Path) -> None:
    config = json.loads((tiny_model_dir / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert {p.name for p in tiny_model_dir.iterdir()} >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
