"""What a request has to wait for before the engine sees it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from quire_engine.server.parameters import Parameters
from quire_engine.server.protocol.completions import CompletionRequest
from quire_engine.structured.grammar_text import grammar_text
from quire_engine.structured.vocabulary import byte_vocabulary


async def test_the_grammar_of_a_client_that_has_left_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go, compiled = threading.Event(), threading.Event(), []

    def load() -> object:
        begun.set()
        assert go.wait(60)
        return byte_vocabulary()

    monkeypatch.setattr("quire_engine.server.parameters.byte_vocabulary", load)
    text = "quire_engine.structured.compiler.grammar_text"
    monkeypatch.setattr(text, lambda wanted: compiled.append(wanted.regex) or grammar_text(wanted))
    parameters = Parameters(None, 10, use_priority=False, defaults={})  # type: ignore[arg-type]  # nothing is tokenized

    def ask(regex: str) -> asyncio.Task[object]:
        request = CompletionRequest.model_validate({"prompt": "a", "guided_regex": regex})
        return asyncio.create_task(parameters.of(request, [1]))

    first = ask("first")
    assert await asyncio.to_thread(begun.wait, 60)
    leaves, stays = ask("leaves"), ask("stays")
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    go.set()
    await asyncio.wait_for(asyncio.gather(first, stays), 60)
    assert compiled == ["first", "stays"]
