"""What the server asks of its engine."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from quire_engine.core.messages import EngineRequest
from quire_engine.sampling_params import SamplingParams
from quire_engine.server.errors import ApiError
from quire_engine.server.generation import Generation
from quire_engine.server.vocabulary import VocabularyLesson


class Recorder:
    """A client whose engine is gone, and which shows what it was handed."""

    def __init__(self) -> None:
        self.requests: list[EngineRequest] = []

    def submit(self, requests: list[EngineRequest], mailbox: object) -> None:
        self.requests = requests
        raise ApiError(500, "gone")


def test_the_prompt_of_several_answers_is_sent_once() -> None:
    client = Recorder()
    params = SamplingParams(n=2, best_of=3, seed=5)
    none = SimpleNamespace(choice=lambda model: None)
    generation = Generation(client, None, None, None, VocabularyLesson(client, None, 9), none)  # type: ignore[arg-type]  # stand-ins
    pieces = generation.run([[1, 2], [3]], [params, params], priority=1, cache_salt="salt")
    with pytest.raises(ApiError):
        asyncio.run(anext(pieces))
    first, *others = client.requests[:3]
    assert [r.prompt_token_ids for r in client.requests] == [[1, 2], [], [], [3], [], []]
    assert [(r.sibling_id, r.priority, r.params) for r in others] == [
        (first.request_id, 1, params.child(1)),
        (first.request_id, 1, params.child(2)),
    ]
    assert (first.sibling_id, first.cache_salt) == (None, "salt")
