"""Bad words as the tokens that spell them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from quire_engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def with_bad_words(params: SamplingParams, tokenizer: PreTrainedTokenizerBase) -> SamplingParams:
    """`params` with `bad_words_token_ids` for its `bad_words`: each as it begins a text, and as it follows a space."""
    if not params.bad_words:
        return params
    spellings: dict[tuple[int, ...], None] = {}
    for word in params.bad_words:
        for text in (word.lstrip(), " " + word.lstrip()):
            ids = tuple(tokenizer.encode(text, add_special_tokens=False))
            if ids:
                spellings[ids] = None
    return replace(params, bad_words_token_ids=[list(ids) for ids in spellings])
