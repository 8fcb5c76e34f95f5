"""The tokens that an answer says it took."""

from __future__ import annotations

from quire_engine.server.generation import Piece
from quire_engine.server.sequences import TokenCount


def test_the_cached_tokens_of_each_prompt_count_once() -> None:
    count = TokenCount(prompt_tokens=50, num_answers=2)
    for index, cached in enumerate((16, 20, 24, 30)):
        count.add(Piece(index, "a", [1], num_cached_tokens=cached))
        count.add(Piece(index, "b", [2], num_cached_tokens=cached))
    usage = count.as_usage()
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 16 + 24
    assert usage.completion_tokens == 8
