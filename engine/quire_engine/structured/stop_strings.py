"""Stop strings of beams. Other answers are cut where their text is made; a beam that ends makes room for another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass

from quire_engine.core.grammar import BusyError, GrammarState, PendingGrammar
from quire_engine.sampling_params import SamplingParams
from quire_engine.structured.compiler import QUEUE_SECONDS
from quire_engine.text.token_bytes import TokenBytes


@dataclass(frozen=True, slots=True)
class Stops:
    """What to look for in an answer, behind its first `min_tokens` tokens."""

    strings: Sequence[bytes]
    bytes_of: Callable[[int], bytes]  # of a token, in the text
    min_tokens: int

    @staticmethod
    def of(params: SamplingParams, tokens: TokenBytes) -> Stops:
        def shown(token: int) -> bytes:
            return b"" if params.skip_special_tokens and tokens.is_special(token) else tokens.of(token)

        return Stops([stop.encode() for stop in params.stop], shown, params.min_tokens)


class StopWatch:
    """How far one answer's text has come, and where in its grammar it is, if it has one."""

    def __init__(self, stops: Stops, grammar: GrammarState | None, tail: bytes = b"", num_tokens: int = 0) -> None:
        """`tail` is the end of the text: what may be the beginning of a stop string."""
        self._stops, self._grammar = stops, grammar
        self._tail, self._num_tokens = tail, num_tokens
        self._stopped = False

    @property
    def allowed(self) -> bytes | None:
        return None if self._grammar is None else self._grammar.allowed

    @property
    def finished(self) -> bool:
        return self._stopped or (self._grammar is not None and self._grammar.finished)

    def advance(self, token: int) -> None:
        """Raises `ValueError` where the grammar does not let the answer go on, unless a stop string ends it."""
        self._num_tokens += 1
        if self._num_tokens > self._stops.min_tokens:
            text = self._tail + self._stops.bytes_of(token)
            self._stopped = any(stop in text for stop in self._stops.strings)
            longest = max(map(len, self._stops.strings))
            self._tail = text[max(0, len(text) - longest + 1) :]
        if self._grammar is not None and not self._stopped:
            self._grammar.advance(token)

    def fork(self) -> StopWatch:
        grammar = None if self._grammar is None else self._grammar.fork()
        return StopWatch(self._stops, grammar, self._tail, self._num_tokens)


@dataclass
class PendingWatch:
    """Stop strings that wait for the tokens' text, and with them the answer's grammar."""

    _tokens: Future[TokenBytes]
    _params: SamplingParams
    _grammar: PendingGrammar | None
    _since: float  # time.monotonic()

    def done(self) -> bool:
        if not self._tokens.done():
            return time.monotonic() > self._since + QUEUE_SECONDS
        return self._grammar is None or self._grammar.done()

    def wait(self, seconds: float) -> None:
        if self._grammar is not None and self._tokens.done():
            self._grammar.wait(seconds)
        else:
            wait([self._tokens], seconds)

    def start(self) -> StopWatch:
        """Raises `ValueError` where the grammar cannot be used, `RuntimeError` where the tokenizer cannot, and
        `BusyError` where the turn of either did not come.
        """
        if not self._tokens.done():
            self.leave()
            raise BusyError(f"stop: the text of tokens was not there within {QUEUE_SECONDS:.0f} s: try again")
        if (error := self._tokens.exception()) is not None:
            self.leave()
            raise RuntimeError(f"stop: the text of tokens could not be found: {error}") from error
        grammar = None if self._grammar is None else self._grammar.start()
        return StopWatch(Stops.of(self._params, self._tokens.result()), grammar)

    def leave(self) -> None:
        if self._grammar is not None:
            self._grammar.leave()
