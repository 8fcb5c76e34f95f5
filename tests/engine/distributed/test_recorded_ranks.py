"""Ranks that share layers replay decodes together, or none of them does."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quire_engine import engine as engine_module
from quire_engine.execution.padded_decodes import PaddedDecodes, Run
from quire_engine.kernels import choice
from tests.engine.distributed.rank_pool import RankPool
from tests.engine.distributed.test_answers import answer, engine
from tests.engine.models.checkpoints import FAMILIES, greedy_reference, make_model, mixed_prompts, save

pytestmark = pytest.mark.usefixtures("one_thread")

FIRST = """
from quire_engine import engine
from quire_engine.kernels import choice
choice.interpreted_on_cpu = True
"""
RECORDS = FIRST + "engine.capture_for = lambda device: lambda run: run\n"
FAILS = (
    FIRST
    + """
def fail(run):
    raise RuntimeError("operation not permitted when stream is capturing")
engine.capture_for = lambda device: fail
"""
)


def as_it_is(run: Run) -> Run:
    return run


@pytest.fixture
def begun_with(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The other rank begins with the statements that the test gives; on all, steps stand for their recordings."""
    pytest.importorskip("triton", reason="Triton is not installed here, and nothing is recorded")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(choice, "interpreted_on_cpu", True)
    monkeypatch.setattr(engine_module, "capture_for", lambda device: as_it_is)
    pool = RankPool(request.param)
    monkeypatch.setattr("quire_engine.distributed.leader.launch", pool.launch)
    yield
    pool.stop()


@pytest.mark.parametrize(
    ("begun_with", "recorded"),
    [(RECORDS, True), pytest.param(FAILS, False, marks=pytest.mark.slow)],
    indirect=["begun_with"],
    ids=["both record", "one cannot"],
)
@pytest.mark.usefixtures("begun_with")
def test_two_ranks_answer_as_transformers_does_and_replay_both_or_not(
    recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replayed: list[int] = []
    run = PaddedDecodes.run

    def counted(self: Any, token_ids: Any, *others: Any) -> Any:
        replayed.append(len(token_ids))
        return run(self, token_ids, *others)

    monkeypatch.setattr(PaddedDecodes, "run", counted)
    model, prompts = make_model(FAMILIES["llama"][0], FAMILIES["llama"][1]()), mixed_prompts(3, 12)
    save(model, tmp_path)
    with (
        caplog.at_level(logging.INFO, logger="quire_engine.execution.model_runner"),
        engine(tmp_path, 2, 1, max_num_seqs=3) as core,
    ):
        assert answer(core, prompts, max_tokens=4) == greedy_reference(model, prompts, 4)
    assert bool(replayed) == recorded
    assert ("another rank cannot" in caplog.text) != recorded
