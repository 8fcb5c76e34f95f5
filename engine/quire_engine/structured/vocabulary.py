"""The tokens of a model as llguidance wants them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from quire_engine.core.messages import Vocabulary
from quire_engine.structured.panics import panics_as_errors

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> LLTokenizer:
    """The vocabulary of `tokenizer` for a model of `vocab_size` tokens, some of which may have no text.

    Takes a second where there are 100,000 tokens. Raises `ValueError` for a tokenizer that cannot be used.
    """
    return read_vocabulary(written_vocabulary(tokenizer, vocab_size))


def written_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Vocabulary:
    """The same, for another process to read. Raises `ValueError` for a tokenizer of another library."""
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"structured outputs need a tokenizer of the tokenizers library: {type(tokenizer).__name__} is none"
        )
    size = max(vocab_size, len(tokenizer))
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        tokenizer, eos, size = _with_end(tokenizer, size), size, size + 1
    own = copy.copy(tokenizer.backend_tokenizer)
    own.no_padding()
    own.no_truncation()
    return Vocabulary(own.to_str(), size, eos)


def read_vocabulary(vocabulary: Vocabulary) -> LLTokenizer:
    """What was written. Raises `ValueError` for what cannot be used."""
    from llguidance import LLTokenizer

    try:
        with panics_as_errors():
            return LLTokenizer(vocabulary.tokenizer, n_vocab=vocabulary.size, eos_token=vocabulary.eos_token_id)
    except ValueError as error:
        raise ValueError(f"structured outputs cannot read this model's tokenizer: {error}") from error


def _with_end(tokenizer: PreTrainedTokenizerFast, size: int) -> PreTrainedTokenizerFast:
    """A copy that knows one token more than a model of `size` tokens can give, to end with."""
    longer = copy.deepcopy(tokenizer)
    more = [f"<|quire-{i}|>" for i in range(len(tokenizer), size + 1)]
    longer.add_tokens(more, special_tokens=True)
    return longer


class _Bytes:
    """A tokenizer whose tokens are the 256 bytes and an end."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)
    tokens = (*(bytes([i]) for i in range(256)), b"<end>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


def byte_vocabulary() -> LLTokenizer:
    """Bytes alone, to find out without a model's tokenizer whether a grammar can be used."""
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])
