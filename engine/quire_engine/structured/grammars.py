"""Grammars for the engine's core: compiled for the model's own tokens, and followed token by token."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quire_engine.sampling_params import SamplingParams
from quire_engine.structured.compiler import Compilation, CompiledGrammar, GrammarCompiler, allowed_text, reason_of
from quire_engine.structured.panics import panics_as_errors

if TYPE_CHECKING:
    from llguidance import LLTokenizer

# Processor time that an answer may spend on its grammar: a little at first, for what is found out only once, and
# so much for each token. Steps wait for it.
_FIRST_SECONDS = 1.0
_SECONDS_PER_TOKEN = 0.01


class CompiledGrammars:
    """The core's `Grammars` for a model of `vocab_size` tokens that ends answers with `eos_token_ids`."""

    def __init__(
        self, load_vocabulary: Callable[[], LLTokenizer], vocab_size: int, eos_token_ids: tuple[int, ...]
    ) -> None:
        self._compiler = GrammarCompiler(load_vocabulary)
        self._num_bytes = -(-vocab_size // 32) * 4
        self._eos_token_ids = eos_token_ids

    def compile(self, params: SamplingParams) -> PendingMatch:
        """Begin to compile `params.structured_outputs`. Raises `BusyError` when too many are waiting for it."""
        assert params.structured_outputs is not None
        ends = {*params.stop_token_ids, *(() if params.ignore_eos else self._eos_token_ids)}
        compilation = self._compiler.submit(params.structured_outputs)
        return PendingMatch(compilation, frozenset(ends), self._num_bytes, time.monotonic())


@dataclass
class PendingMatch:
    """A grammar on its way."""

    _compilation: Compilation
    _ends: frozenset[int]
    _num_bytes: int
    _since: float  # time.monotonic()

    def done(self) -> bool:
        return self._compilation.future.done() or self._compilation.seconds_left(self._since) <= 0

    def wait(self, seconds: float) -> None:
        wait([self._compilation.future], seconds)

    def start(self) -> Match:
        """Raises `ValueError` for a grammar that cannot be used, and `BusyError` where its turn did not come."""
        self._compilation.leave()
        if not self._compilation.future.done() or self._compilation.future.cancelled():
            raise self._compilation.overdue()
        return Match(self._compilation.future.result(), self._ends, self._num_bytes)

    def leave(self) -> None:
        self._compilation.leave()


class Match:
    """One answer's place in its grammar. `ends` may come exactly where the grammar may end."""

    def __init__(self, grammar: CompiledGrammar, ends: frozenset[int], num_bytes: int) -> None:
        self._matcher, self._own_ends = grammar.matcher.deep_copy(), grammar.end_tokens
        self._ends, self._num_bytes = ends, num_bytes
        self._seconds_left = _FIRST_SECONDS
        self.allowed = b""
        self.finished = False
        self._look_ahead()

    def advance(self, token: int) -> None:
        """Move past `token`. Raises `ValueError` where the answer cannot go on."""
        started = time.thread_time()
        with panics_as_errors():
            moved = self._matcher.consume_token(token)
        if not moved:
            raise ValueError(f"structured_outputs: the answer cannot go on: {reason_of(self._matcher)}")
        self._look_ahead()
        self._seconds_left += _SECONDS_PER_TOKEN - (time.thread_time() - started)
        if self._seconds_left < 0:
            raise ValueError("structured_outputs: the grammar takes too long to follow: write one less ambiguous")

    def _look_ahead(self) -> None:
        with panics_as_errors():
            mask = allowed_text(self._matcher, self._own_ends)
        if self._matcher.is_error():
            raise ValueError(f"structured_outputs: the answer cannot go on: {reason_of(self._matcher)}")
        mask = mask.ljust(self._num_bytes, b"\0")[: self._num_bytes]  # the model's tokens, in whole words
        accepting = self._matcher.is_accepting()
        self.finished = mask.count(0) == len(mask)
        if self.finished and not accepting:
            raise ValueError("structured_outputs: the answer cannot go on: none of the model's tokens continues it")
        if accepting:
            for token in self._ends:
                mask[token // 8] |= 1 << token % 8
        self.allowed = bytes(mask)
