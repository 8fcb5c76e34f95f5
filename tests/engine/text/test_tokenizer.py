"""A tokenizer that is none, or another model's, is told before a request comes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from quire_engine import LLM
from quire_engine.startup_error import StartupError
from quire_engine.text.tokenizer import check_vocabulary, load_tokenizer


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    words = Tokenizer(WordLevel({f"word{i}": i for i in range(100)}, unk_token="word0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"version": "1.0", "model": {"type": "none"}}'])
def test_a_broken_file_is_told_in_one_line(directory: Path, content: str) -> None:
    (directory / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=f"the tokenizer of {directory} cannot be loaded: ") as caught:
        load_tokenizer(str(directory))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(". Name one with --tokenizer")


def test_a_vocabulary_larger_than_the_models_is_another_models(directory: Path) -> None:
    tokenizer = load_tokenizer(str(directory))
    check_vocabulary(tokenizer, 100, "org/name")
    check_vocabulary(tokenizer, 128, "org/name")  # models pad theirs
    with pytest.raises(ValueError, match="the tokenizer of org/name has 100 tokens and the model 99: they do not"):
        check_vocabulary(tokenizer, 99, "org/name")


def test_a_few_added_tokens_may_be_beyond_the_models(directory: Path) -> None:
    """As Gemma 3's for images are, in its models of text alone."""
    tokenizer = load_tokenizer(str(directory))
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    check_vocabulary(tokenizer, 100, "org/name")


def test_a_tokenizer_that_does_not_match_ends_the_start_before_weights_are_loaded(
    directory: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = Tokenizer(WordLevel({f"word{i}": i for i in range(5000)}, unk_token="word0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(directory)
    loaded: list[object] = []
    monkeypatch.setattr("quire_engine.engine.load_model", lambda *arguments: loaded.append(arguments))
    with pytest.raises(StartupError, match="has 5000 tokens and the model 2048: they do not belong together"):
        LLM(str(tiny_model_dir), tokenizer=str(directory), device="cpu")
    assert loaded == []
