"""Grammars for the engine's core: compiled for the model's own tokens, and followed token by token."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quire_engine.core.grammar import GrammarState, PendingGrammar
from quire_engine.sampling_params import SamplingParams
from quire_engine.structured.compiler import Compilation, GrammarCompiler
from quire_engine.structured.match import Limits, Match
from quire_engine.structured.panics import panics_as_errors
from quire_engine.structured.reasoned_match import ReasonedMatch
from quire_engine.structured.stop_strings import PendingWatch
from quire_engine.text.token_bytes import TokenBytes

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class CompiledGrammars:
    """The core's `Grammars` for a model of `vocab_size` tokens that ends answers with `eos_token_ids`."""

    def __init__(
        self,
        load_vocabulary: Callable[[], LLTokenizer],
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        load_token_bytes: Callable[[], TokenBytes] | None = None,
    ) -> None:
        """`load_token_bytes` is called on the compiler's thread, before the first stop strings and after it failed."""
        self._compiler = GrammarCompiler(load_vocabulary)
        self._load_token_bytes = load_token_bytes
        self._token_bytes: Future[TokenBytes] | None = None
        self._num_bytes = -(-vocab_size // 32) * 4
        self._eos_token_ids = eos_token_ids

    def compile(self, params: SamplingParams) -> PendingGrammar:
        """As the core's `Grammars` says. Raises `ValueError` for stop strings where tokens have no text."""
        if not (params.use_beam_search and params.stop):
            return self._pending_match(params)
        tokens = self._start_loading()
        grammar = self._pending_match(params) if params.structured_outputs else None
        return PendingWatch(tokens, params, grammar, time.monotonic())

    def _start_loading(self) -> Future[TokenBytes]:
        if self._load_token_bytes is None:
            raise ValueError("stop is set beside use_beam_search and this engine has no tokenizer: leave it out")
        loading = self._token_bytes
        if loading is None or (loading.done() and loading.exception() is not None):
            loading = self._token_bytes = self._compiler.run(self._load_token_bytes)
        return loading

    def _pending_match(self, params: SamplingParams) -> PendingMatch:
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

    def start(self) -> GrammarState:
        """Raises `ValueError` for a grammar that cannot be used, and `BusyError` where its turn did not come."""
        self._compilation.leave()
        if not self._compilation.future.done() or self._compilation.future.cancelled():
            raise self._compilation.overdue()
        grammar = self._compilation.future.result()
        limits = Limits(self._ends, grammar.end_tokens, self._num_bytes)
        reasoning = grammar.reasoning
        if reasoning is not None and reasoning.tags.begun:
            return ReasonedMatch(reasoning, limits, None)
        with panics_as_errors():
            matcher = grammar.matcher.deep_copy()
        match = Match(matcher, limits)
        return match if reasoning is None else ReasonedMatch(reasoning, limits, match)

    def leave(self) -> None:
        self._compilation.leave()
