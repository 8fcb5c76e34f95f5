"""What the core knows of grammars: a request's may not be there yet, says which tokens come next, and may end."""

from __future__ import annotations

from typing import Protocol

from quire_engine.sampling_params import SamplingParams


class BusyError(ValueError):
    """Nothing is wrong with what was asked for: later there is room for it."""


class TooSlowError(ValueError):
    """Following a grammar takes more time than an answer may take."""


def needs_grammar(params: SamplingParams) -> bool:
    """Whether the engine has to follow an answer's text. Stop strings are looked for by whoever makes text of tokens;
    but a beam that has ended makes room for another.
    """
    return params.structured_outputs is not None or (params.use_beam_search and bool(params.stop))


class GrammarState(Protocol):
    """How far one answer has come in its grammar. A preempted request keeps it, as it keeps its tokens."""

    @property
    def allowed(self) -> bytes | None:
        """The tokens that may come next: bit i % 8 of byte i // 8 for token i, in words of 32 bits. None for all."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the answer is whole and nothing but its end can come."""
        ...

    def advance(self, token: int) -> None:
        """Move past a sampled token. Raises `ValueError` where the answer cannot go on."""
        ...

    def fork(self) -> GrammarState:
        """One that is as far, and goes on by itself."""
        ...


class PendingGrammar(Protocol):
    """A grammar that is being compiled, somewhere else."""

    def done(self) -> bool: ...

    def wait(self, seconds: float) -> None:
        """Return once it is done, and after so many seconds anyway."""
        ...

    def start(self) -> GrammarState:
        """The state before the first token, once it is done.

        Raises `ValueError` for a grammar that cannot be used, and `BusyError` where its turn did not come.
        """
        ...

    def leave(self) -> None:
        """Its request has gone: it need not be compiled, unless others wait for the same."""
        ...


class Grammars(Protocol):
    """Compiles what requests ask for, beside the steps."""

    def compile(self, params: SamplingParams) -> PendingGrammar:
        """Begin to compile what the answer's text is held to, or, beside beams, ended by: see `needs_grammar`.

        Raises `BusyError` when too many are waiting for it.
        """
        ...
