"""The bytes of single tokens, joined, are the text."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from quire_engine.sampling_params import SamplingParams
from quire_engine.text.bad_words import with_bad_words
from quire_engine.text.token_bytes import TokenBytes

TEXTS = ["Hello there, world!", " begins with a space", "naïve café — déjà vu", "日本語 and 🦙🦙", "a\n\tb  c"]


def byte_level() -> PreTrainedTokenizerBase:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<end>"])
    made.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def byte_fallback() -> PreTrainedTokenizerBase:
    """As Llama 2's: words begin with U+2581, and bytes stand in for what has no token."""
    words = ["\u2581", "Hello", "\u2581Hello", "\u2581there", "o", "r", "\u2581world", "!", ",", "a", "\u2581a", "b"]
    names = ["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words]
    made = Tokenizer(models.BPE({n: i for i, n in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


@pytest.fixture(params=["tiny", "byte level", "byte fallback"])
def tokenizer(request: pytest.FixtureRequest, tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    if request.param == "tiny":
        made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_model_dir)
        return made
    return byte_level() if request.param == "byte level" else byte_fallback()


@pytest.mark.parametrize("text", TEXTS)
def test_joined_they_are_the_text_even_where_a_character_is_split(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    tokens = TokenBytes(tokenizer)
    joined = b"".join(tokens.of(i) for i in ids)
    assert joined.decode().lstrip(" ") == text.lstrip(" ")


def test_special_tokens_have_their_names_and_unknown_ids_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = TokenBytes(tokenizer)
    assert tokens.text(tokenizer.eos_token_id) == tokenizer.eos_token
    assert tokens.of(10_000_000) == b""


def test_a_bad_word_is_spelled_as_it_begins_a_text_and_after_a_space(tokenizer: PreTrainedTokenizerBase) -> None:
    params = with_bad_words(SamplingParams(bad_words=["Hello", " Hello"]), tokenizer)
    spelled = [tokenizer.encode(text, add_special_tokens=False) for text in ("Hello", " Hello")]
    assert params.bad_words_token_ids == [s for i, s in enumerate(spelled) if s not in spelled[:i]]
