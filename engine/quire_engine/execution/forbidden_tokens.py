"""Which tokens a request forbids at its next position: the ends before `min_tokens`, and the ends of bad words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from quire_engine.core.step import NewSequence


@dataclass(slots=True)
class _Rules:
    ends: list[int]  # tokens that end the answer
    ends_from: int  # the length of prompt and output from which on these may come
    always: list[int]  # bad words of one token
    # Bad words of several tokens, by the last token but one: (the tokens before the last one, the last one)
    words: dict[int, list[tuple[list[int], int]]] = field(default_factory=dict)
    longest: int = 0  # tokens of output that a word looks back at
    output: list[int] = field(default_factory=list)  # the latest of them

    def forbidden(self, length: int) -> list[int]:
        tokens = list(self.always)
        if length < self.ends_from:
            tokens += self.ends
        if self.output:
            begun = self.words.get(self.output[-1], ())
            tokens += [last for head, last in begun if self.output[-len(head) :] == head]
        return tokens


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
        rules = _Rules(
            ends, sequence.num_prompt_tokens + params.min_tokens, always=[w[0] for w in words if len(w) == 1]
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

    def pairs(self, rows: Sequence[int], lengths: Sequence[int]) -> list[tuple[int, int]]:
        """(i, token) for each token that `rows[i]`, now of `lengths[i]` tokens, forbids."""
        if not self._rules:
            return []
        return [
            (i, token)
            for i, (row, length) in enumerate(zip(rows, lengths, strict=True))
            if row in self._rules
            for token in self._rules[row].forbidden(length)
        ]
