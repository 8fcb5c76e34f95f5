"""Where each token of a completion stands in its text, for tokenizers that make it hard."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from quire_engine.core.step import TokenLogprobs
from quire_engine.server.logprobs import LEAST, CompletionLogprobsWriter
from quire_engine.text.token_bytes import TokenBytes
from tests.engine.text.test_token_bytes import byte_fallback, byte_level


def entries(ids: list[int]) -> list[TokenLogprobs]:
    return [TokenLogprobs(i, -1.0, 2, [i + 1, i], [-0.5, -1.0]) for i in ids]


@pytest.mark.parametrize("tokenizer", [byte_level(), byte_fallback()], ids=["byte level", "byte fallback"])
@pytest.mark.parametrize("at_once", [True, False])
def test_each_whole_token_of_an_echo_is_found_at_its_offset(tokenizer: PreTrainedTokenizerBase, at_once: bool) -> None:
    """Also after a special token, which the text lacks, and a space that only the tokens have."""
    text = "Hello there, naïve 日本 world!"
    ids = [tokenizer.eos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    writer = CompletionLogprobsWriter(TokenBytes(tokenizer), with_special=False, echoed=text)
    if at_once:
        made = [writer.write(entries(ids[1:]), ids[0])]
    else:
        made = [writer.write([], ids[0]), *(writer.write(entries([i])) for i in ids[1:])]
    tokens = [t for part in made for t in part.tokens]
    offsets = [o for part in made for o in part.text_offset]
    assert offsets == sorted(offsets)
    assert offsets[:2] == [0, 0]
    assert made[0].token_logprobs[0] is None
    assert tokens[0] == tokenizer.eos_token
    for position, (token, offset) in enumerate(zip(tokens, offsets, strict=True)):
        if position > 1 and "\N{REPLACEMENT CHARACTER}" not in token:
            assert text[offset : offset + len(token)] == token
    assert offsets[-1] == len(text) - len(tokens[-1])


def test_of_tokens_that_read_alike_the_likeliest_is_told_and_no_logprob_is_infinite() -> None:
    tokenizer = byte_fallback()
    one, other = tokenizer.convert_tokens_to_ids(["<0x61>", "a"])
    entry = TokenLogprobs(5, float("-inf"), 9, [one, other], [-0.25, -3.0])
    made = CompletionLogprobsWriter(TokenBytes(tokenizer), with_special=False).write([entry])
    assert made.token_logprobs == [LEAST]
    assert made.top_logprobs == [{"a": -0.25, made.tokens[0]: LEAST}]
