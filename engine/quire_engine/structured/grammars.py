"""Grammars for the engine's core: compiled for the model's own tokens, and followed token by token."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quire_engine.core.grammar import GrammarState
from quire_engine.sampling_params import SamplingParams
from quire_engine.structured.compiler import Compilation, GrammarCompiler
from quire_engine.structured.match import Limits, Match
from quire_engine.structured.reasoned_match import ReasonedMatch

if TYPE_CHECKING:
    from llguidance import LLTokenizer


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
        match = Match(grammar.matcher.deep_copy(), limits)
        return match if reasoning is None else ReasonedMatch(reasoning, limits, match)

    def leave(self) -> None:
        self._compilation.leave()
