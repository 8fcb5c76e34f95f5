"""Compiles grammars, one after the other on a thread of its own, and keeps the latest."""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from quire_engine.core.grammar import BusyError
from quire_engine.structured.grammar_text import grammar_text
from quire_engine.structured.panics import panics_as_errors
from quire_engine.structured.reasoning_grammar import CompiledReasoning, with_reasoning
from quire_engine.structured_outputs import StructuredOutputsParams

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

T = TypeVar("T")

MAX_KEPT = 64
MAX_WAITING = 256
QUEUE_SECONDS = 20.0  # how long a request waits for the turn of its grammar
COMPILE_SECONDS = 20.0  # and then for its compilation: one that takes longer goes on to its own end
# A schema of `MAX_CHARACTERS` whose references form one chain needs half of it: llguidance follows them by recursion.
_STACK_BYTES = 64 * 2**20
_TRIAL_TOKENS = 4


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """A grammar for one vocabulary."""

    matcher: LLMatcher  # at the beginning: to be copied, never to be moved itself
    end_tokens: tuple[int, ...]  # which the matcher allows where the grammar may end
    reasoning: CompiledReasoning | None = None  # what may come before


class TooManyGrammarsError(BusyError):
    """Too many grammars wait to be compiled: later there is room."""


@dataclass(eq=False, slots=True)
class Compilation:
    """A grammar on its way, or compiled. Whoever submits one waits for it until it has called `leave`."""

    kind: str  # of `StructuredOutputsParams`
    future: Future[CompiledGrammar] = field(init=False)
    started: float | None = None  # time.monotonic() when its turn came
    num_waiting: int = 0

    def seconds_left(self, since: float) -> float:
        """How long one who waits since then may still wait, as of now: for its turn, or for the end of it."""
        limit = since + QUEUE_SECONDS if self.started is None else self.started + COMPILE_SECONDS
        return limit - time.monotonic()

    def overdue(self) -> ValueError:
        """What to raise where no seconds are left: `BusyError` where it is the others who took them."""
        if self.started is None:
            return BusyError(f"structured_outputs: other grammars took {QUEUE_SECONDS:.0f} s to compile: try again")
        return ValueError(
            f"structured_outputs.{self.kind} was not compiled within {COMPILE_SECONDS:.0f} s: simplify it"
        )

    def leave(self) -> None:
        """One fewer waits. What nobody waits for is not begun."""
        self.num_waiting -= 1
        if self.num_waiting == 0:
            self.future.cancel()  # in vain where it has begun

    @property
    def failed(self) -> bool:
        return self.future.cancelled() or (self.future.done() and self.future.exception() is not None)


class GrammarCompiler:
    """Compiled grammars by what was asked for, the least recently used going first.

    `load_vocabulary` is called once, on the thread, before the first grammar.
    """

    def __init__(self, load_vocabulary: Callable[[], LLTokenizer]) -> None:
        self._load_vocabulary = load_vocabulary
        self._loaded: LLTokenizer | str | None = None  # or what is wrong with it
        self._kept: OrderedDict[tuple[object, ...], Compilation] = OrderedDict()
        self._waiting: list[Compilation] = []
        self._thread: ThreadPoolExecutor | None = None

    def submit(self, wanted: StructuredOutputsParams) -> Compilation:
        """Compile, or find what was compiled before. Whoever calls this has to `leave` it.

        Its future raises `ValueError` for a grammar that cannot be used; this call `TooManyGrammarsError`.
        """
        key = wanted.key
        compilation = self._kept.get(key)
        if compilation is None or compilation.failed:
            self._waiting = [c for c in self._waiting if not c.future.done()]
            if len(self._waiting) >= MAX_WAITING:
                raise TooManyGrammarsError(
                    f"structured_outputs: {MAX_WAITING} other grammars are being compiled: try again"
                )
            compilation = self._kept[key] = Compilation(wanted.kind)
            compilation.future = self._start_thread().submit(self._compile, compilation, wanted)
            self._waiting.append(compilation)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        compilation.num_waiting += 1
        return compilation

    def run(self, work: Callable[[], T]) -> Future[T]:
        """Do something else on the thread, in its turn: transformers is not to be imported by two threads at once."""
        return self._start_thread().submit(work)

    def _start_thread(self) -> ThreadPoolExecutor:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
            before = threading.stack_size(_STACK_BYTES)
            try:
                self._thread.submit(lambda: None).result()
            finally:
                threading.stack_size(before)
        return self._thread

    def _compile(self, compilation: Compilation, wanted: StructuredOutputsParams) -> CompiledGrammar:
        compilation.started = time.monotonic()
        return self._compiled(wanted)

    def _compiled(self, wanted: StructuredOutputsParams) -> CompiledGrammar:
        try:
            from llguidance import LLMatcher
        except ImportError as error:
            raise ValueError("structured outputs need llguidance: pip install llguidance") from error
        vocabulary = self._vocabulary()
        end_tokens = tuple(vocabulary.eos_tokens)
        grammar, tags = grammar_text(wanted), wanted.after_reasoning
        with panics_as_errors():
            matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=_limits())
            reason = _fault(matcher, end_tokens)
        if reason is not None:
            for i, (name, schema) in enumerate(wanted.calls or ()):
                self._check_call(f"structured_outputs.calls.{i}, {name}, cannot be used: ", schema)
            raise ValueError(f"structured_outputs.{wanted.kind} cannot be used: {reason}")
        if tags is None:
            return CompiledGrammar(matcher, end_tokens)
        with panics_as_errors():
            inside, at_start = (
                LLMatcher(
                    vocabulary,
                    with_reasoning(grammar, tags, vocabulary, begun=begun),
                    log_level=0,
                    limits=_limits(),
                )
                for begun in (True, tags.begun)
            )
        for one in (inside, at_start):
            if one.is_error():
                raise ValueError(f"structured_outputs.{wanted.kind} cannot follow reasoning: {reason_of(one)}")
        return CompiledGrammar(at_start, end_tokens, CompiledReasoning(tags, inside, vocabulary))

    def _check_call(self, message: str, schema: str) -> None:
        """Raise `ValueError` where it is this schema of several that cannot be used."""
        try:
            self._compiled(StructuredOutputsParams(json=schema))
        except ValueError as error:
            raise ValueError(message + str(error).split(": ", 1)[-1]) from error

    def _vocabulary(self) -> LLTokenizer:
        """Loaded once, in vain or not. Raises `ValueError` that says what is wrong with the tokenizer."""
        if self._loaded is None:
            try:
                self._loaded = self._load_vocabulary()
            except ValueError as error:
                self._loaded = str(error)
        if isinstance(self._loaded, str):
            raise ValueError(self._loaded)
        return self._loaded


def _limits() -> LLParserLimits:
    """Lower than llguidance's own, so that no grammar takes long to compile, nor any of its steps."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=50_000,
        step_max_items=20_000,
        max_items_in_row=2_000,
        max_lexer_states=10_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def allowed_text(matcher: LLMatcher, end_tokens: tuple[int, ...]) -> bytearray:
    """The tokens with text that may come next, one bit each."""
    mask = bytearray(matcher.compute_bitmask())
    for token in end_tokens:
        mask[token // 8] &= ~(1 << token % 8)
    return mask


def _fault(matcher: LLMatcher, end_tokens: tuple[int, ...]) -> str | None:
    """Why a grammar cannot be used, if so: some show it only with the first mask, or a few tokens later."""
    trial = matcher.deep_copy()
    for step in range(_TRIAL_TOKENS):
        mask = b"" if trial.is_error() else allowed_text(trial, end_tokens)
        if trial.is_error() and not (reason := reason_of(trial)).startswith("NoExtension"):
            return reason
        byte = next((i for i, bits in enumerate(mask) if bits), None)
        if byte is None:
            none = "no answer matches it" if trial.is_error() else "no answer but the empty one matches it"
            return None if step else none
        trial.consume_token(byte * 8 + (mask[byte] & -mask[byte]).bit_length() - 1)
    return None


def reason_of(matcher: LLMatcher) -> str:
    """What is wrong, in one line without the matcher's inner state."""
    text = matcher.get_error().split("<state>")[0].split("<non-verbose/>")[0]
    # Of a regex, the library shows the whole, underlined, and then what it says about it.
    in_regex = re.search(r"\berror: (.*)", text)
    return re.sub(r"\s+", " ", in_regex[1] if in_regex else text).strip()[:300]
