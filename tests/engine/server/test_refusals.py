"""What a client is told of a request that the engine did not run."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from quire_engine.core.grammar import BusyError
from quire_engine.core.messages import EngineOutput, ErrorKind
from quire_engine.server.errors import refused
from quire_engine.structured.compiler import COMPILE_SECONDS, QUEUE_SECONDS, Compilation, CompiledGrammar
from quire_engine.structured.grammars import PendingMatch


@pytest.mark.parametrize(("kind", "status"), [("invalid", 400), ("busy", 429), ("fault", 500)])
def test_only_what_the_client_can_change_is_its_fault(kind: ErrorKind, status: int) -> None:
    error = refused(EngineOutput("r", [], "error", error="why", error_kind=kind), param="input")
    assert (error.status, error.message) == (status, "why")
    assert error.param == ("input" if kind == "invalid" else None)
    assert ("retry-after" in error.headers) == (kind == "busy")


def test_a_grammar_that_waited_behind_others_may_come_again_and_one_that_took_too_long_may_not() -> None:
    begun, go = threading.Event(), threading.Event()

    def compile_for_ever() -> CompiledGrammar:
        begun.set()
        go.wait()
        raise ValueError

    with ThreadPoolExecutor(1) as pool:
        compilations = [Compilation("json", num_waiting=1) for _ in "12"]
        for compilation in compilations:
            compilation.future = pool.submit(compile_for_ever)
        long_ago = time.monotonic() - max(QUEUE_SECONDS, COMPILE_SECONDS)
        long, behind = [PendingMatch(compilation, frozenset(), 4, long_ago) for compilation in compilations]
        try:
            begun.wait()
            compilations[0].started = long_ago
            assert long.done()
            with pytest.raises(ValueError, match="was not compiled within 20 s") as own:
                long.start()
            with pytest.raises(BusyError, match="other grammars took 20 s"):
                behind.start()
            assert not isinstance(own.value, BusyError)
        finally:
            go.set()
