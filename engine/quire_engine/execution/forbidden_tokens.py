"""Which tokens a request forbids at its next position: the ends before `min_tokens`, and the ends of bad words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from quire_engine.core.step import NewSequence


@dataclass(slots=True)
class _Rules:
    ends_from: int  # the length of prompt and output from which on tokens that end the answer may come
    early: np.ndarray  # before that: the ends, and the following
    always: np.ndarray  # bad words of one token, int64
    # Bad words of several tokens, by the last token but one: (the tokens before the last one, the last one)
    words: dict[int, list[tuple[list[int], int]]] = field(default_factory=dict)
    longest: int = 0  # tokens of output that a word looks back at
    output: list[int] = field(default_factory=list)  # the latest of them

    def forbidden(self, length: int) -> np.ndarray:
        tokens = self.early if length < self.ends_from else self.always
        begun = self.words.get(self.output[-1], ()) if self.output else ()
        more = [last for head, last in begun if self.output[-len(head) :] == head]
        return np.concatenate((tokens, np.array(more, dtype=np.int64))) if more else tokens


class ForbiddenTokens:
    """The rules of each row, and the output that they look back at."""

    def __init__(self, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._rules: dict[int, _Rules] = {}

    def add(self, row: int, sequence: NewSequence) -> None:
        """Meet a request. One that forbids nothing is not remembered."""
        params = sequence.params
        ends = [*params.stop_token_ids, *(() if params.ignore_eos else self._eos_token_ids)]
        # A tokenizer may know tokens that the model does not have: a word with one of them can never come.
        words = [w for w in params.bad_words_token_ids if w and max(w) < self._vocab_size]
        if not words and not (ends and params.min_tokens):
            return
        always = [word[0] for word in words if len(word) == 1]
        rules = _Rules(
            sequence.num_prompt_tokens + params.min_tokens,
            early=np.array([*always, *ends], dtype=np.int64),
            always=np.array(always, dtype=np.int64),
        )
        for *head, last in words:
            if head:
                rules.words.setdefault(head[-1], []).append((head, last))
                rules.longest = max(rules.longest, len(head))
        self._rules[row] = rules
        self.follow(row, sequence.token_ids[sequence.num_prompt_tokens :])

    def remove(self, row: int) -> None:
        self._rules.pop(row, None)

    def follow(self, row: int, new_tokens: Sequence[int]) -> None:
        """Remember what was put out."""
        rules = self._rules.get(row)
        if rules is not None and rules.longest:
            rules.output = [*rules.output, *new_tokens[-rules.longest :]][-rules.longest :]

    def pairs(self, rows: Sequence[int], lengths: Sequence[int]) -> np.ndarray | None:
        """[2, pairs] int64: i, and a token that `rows[i]`, now of `lengths[i]` tokens, forbids. None for no pairs."""
        if not self._rules:
            return None
        tokens = {
            i: self._rules[row].forbidden(length)
            for i, (row, length) in enumerate(zip(rows, lengths, strict=True))
            if row in self._rules
        }
        if not any(map(len, tokens.values())):
            return None
        at = np.repeat(np.array([*tokens], dtype=np.int64), [len(some) for some in tokens.values()])
        return np.stack((at, np.concatenate([*tokens.values()])))
