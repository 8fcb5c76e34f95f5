"""Texts are encoded as transformers does it, the first one and all that follow."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from quire_engine.text.encoder import Encoder


def tokenizer(cls: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast, **settings: Any) -> PreTrainedTokenizerFast:
    """Of bytes, with <s> before each text, which is cut off and filled up as its file has it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<s>"])
    made.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])
    made.enable_truncation(4)
    made.enable_padding(length=16)
    return cls(tokenizer_object=made, bos_token="<s>", **settings)


@given(texts=st.lists(st.text(max_size=30) | st.just("a<s>b"), min_size=2, max_size=4), special=st.booleans())
@pytest.mark.parametrize("splits", [False, True])
def test_ids_are_those_of_transformers(texts: list[str], special: bool, splits: bool) -> None:
    theirs, encoder = tokenizer(split_special_tokens=splits), Encoder(tokenizer(split_special_tokens=splits))
    for text in texts:
        assert encoder(text, special=special) == theirs.encode(text, add_special_tokens=special)


@pytest.mark.parametrize("special", [False, True])
def test_others_run_while_a_long_text_is_encoded(special: bool) -> None:
    encoder, turns, done = Encoder(tokenizer()), 0, threading.Event()

    def take_turns() -> None:
        nonlocal turns
        while not done.wait(0.001):
            turns += 1

    encoder("a", special=special)
    text = "word " * 200_000
    other = threading.Thread(target=take_turns)
    other.start()
    before = turns
    found = encoder(text, special=special)
    taken = turns - before
    done.set()
    other.join()
    assert len(found) == len(text) + special
    assert taken > 10  # of some hundreds; one or two may fall just before and behind


def test_a_class_with_its_own_way_is_asked() -> None:
    class Own(PreTrainedTokenizerFast):
        def encode(self, text: Any, **settings: Any) -> list[int]:
            return [*super().encode(text, **settings), 7]

    encoder = Encoder(tokenizer(Own))
    assert [encoder("ab", special=False)[-1] for _ in range(3)] == [7, 7, 7]
