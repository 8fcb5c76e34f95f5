"""A hub that goes away takes nothing along: what was learned of a model holds for as long as the spec asks for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from e2e.hub_server import make_server
from quire_operator.api import CacheStatus, LLMService, ModelStatus, PlanStatus, Status
from quire_operator.builders.cached_model import download_of
from quire_operator.kubeapi.client import Client
from quire_operator.reconcile.conditions import Verdict, with_times
from quire_operator.reconcile.planning import Planned
from quire_operator.run.plans import Plans
from quire_operator.settings import Settings
from tests.operator.checkpoints import SMALL, write_checkpoint
from tests.operator.services import service

COMMIT = "a" * 40
FITS = PlanStatus(verdict="Fits", message="1 GiB of 2")
SOURCE = "hf://org/small"
MODEL = ModelStatus(name="llama", source=f"{SOURCE}@main", revision=COMMIT, max_model_len=64, parameters=7)
READY = CacheStatus(phase="Ready", claim_name="models", model=f"{SOURCE}@main", commit=COMMIT)


class Asked:
    """Plans of a hub that gives none, and who was told that an answer is there."""

    def __init__(self, endpoint: str) -> None:
        self.told: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        settings = Settings(engine_image="quire/engine:test", hub_endpoint=endpoint)
        self.plans = Plans(cast(Client, None), settings, self.told.put_nowait)

    async def answer(self, asked: LLMService) -> Planned:
        if (found := self.plans.of(asked)) is None:
            await asyncio.wait_for(self.told.get(), 20)
            found = self.plans.of(asked)
        assert found is not None
        return found


@pytest.fixture(params=["away", "refusing"])
def endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A hub that does not answer, and one that says nothing of the model."""
    server: ThreadingHTTPServer = make_server({"org/other": write_checkpoint(tmp_path, SMALL)}, host="127.0.0.1")
    if request.param == "away":
        server.server_close()
        yield f"http://127.0.0.1:{server.server_port}"
        return
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
async def asked(endpoint: str) -> AsyncIterator[Asked]:
    found = Asked(endpoint)
    async with found.plans:
        yield found


def reported(*, generation: int = 1, model: ModelStatus = MODEL, cache: CacheStatus = READY, **spec: Any) -> LLMService:
    """A service on a branch whose spec of `generation` was accepted and cached; the spec is of generation 1."""
    conditions = with_times([Verdict("Accepted", True, "Valid", "")], (), generation, "then")
    owner = service(**{"model": {"source": SOURCE}, "cache": {"claimName": "models"}} | spec)
    return owner.model_copy(update={"status": Status(conditions=conditions, model=model, plan=FITS, cache=cache)})


async def test_an_accepted_spec_keeps_its_plan_and_its_commit_and_the_hub_is_asked_again(asked: Asked) -> None:
    owner = reported()
    found = await asked.answer(owner)
    assert (found.plan, found.commit, found.max_model_len, found.parameters) == (FITS, COMMIT, 64, 7)
    assert found.again_after is not None


async def test_the_finished_download_stays_the_one_that_is_wanted_and_its_job_is_seen_to(asked: Asked) -> None:
    owner = reported()
    found = await asked.answer(owner)
    wanted = download_of(owner, found.commit)
    assert wanted is not None
    assert wanted.revision == COMMIT
    assert not found.is_from_status


async def test_an_edit_of_something_else_has_no_plan_and_keeps_the_commit(asked: Asked) -> None:
    found = await asked.answer(reported(generation=0))
    assert found.plan is not None
    assert (found.plan.verdict, found.commit) == ("Skipped", COMMIT)


async def test_a_model_that_was_never_read_is_skipped(asked: Asked) -> None:
    found = await asked.answer(reported(model=MODEL.model_copy(update={"parameters": None})))
    assert found.plan is not None
    assert (found.plan.verdict, found.commit) == ("Skipped", None)


async def test_another_model_is_skipped(asked: Asked) -> None:
    found = await asked.answer(reported(model=MODEL.model_copy(update={"source": f"{SOURCE}@v1"})))
    assert found.plan is not None
    assert (found.plan.verdict, found.commit) == ("Skipped", None)


async def test_jobs_are_left_alone_while_a_branch_is_followed_to_a_commit_that_no_status_names(asked: Asked) -> None:
    found = await asked.answer(reported(cache=READY.model_copy(update={"phase": "Downloading"})))
    assert found.is_from_status
