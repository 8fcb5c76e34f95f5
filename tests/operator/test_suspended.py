"""A suspended service: nothing is refused to it, and its status tells of its own model only."""

from __future__ import annotations

from typing import Any

import pytest

from quire_operator.api import LLMService, ModelStatus, PlanStatus, Status
from quire_operator.plan.claim_modes import ClaimFacts
from quire_operator.reconcile.conditions import Verdict, with_times
from quire_operator.reconcile.environment import Environment, refusal_by_environment
from quire_operator.reconcile.planning import Planned, refusal_by_plan
from tests.operator.services import service

TOO_LARGE = PlanStatus(verdict="DoesNotFit", message="4 GiB too much")
FITS = PlanStatus(verdict="Fits")
MODEL = ModelStatus(name="llama", source="hf://org/old@v1", revision="a" * 40, parameters=7)


def told(*, known: ModelStatus = MODEL, plan: PlanStatus = FITS, accepted: bool = True, **spec: Any) -> LLMService:
    """A suspended service whose last status was of an earlier spec."""
    conditions = with_times([Verdict("Accepted", accepted, "Valid" if accepted else "DoesNotFit", "")], (), 0, "then")
    asked = {"source": "hf://org/old", "revision": "v1"}
    status = Status(conditions=conditions, model=known, plan=plan)
    return service(**{"model": asked, "suspend": True} | spec).model_copy(update={"status": status})


@pytest.mark.parametrize(("suspend", "is_refused"), [(False, True), (True, False)])
def test_no_plan_refuses_to_suspend(suspend: bool, is_refused: bool) -> None:
    assert (refusal_by_plan(service(suspend=suspend), TOO_LARGE) is not None) is is_refused


@pytest.mark.parametrize(("suspend", "is_refused"), [(False, True), (True, False)])
def test_no_claim_refuses_to_suspend(suspend: bool, is_refused: bool) -> None:
    owner = service(model={"source": "hf://org/name"}, cache={"claimName": "models"}, suspend=suspend)
    environment = Environment(ClaimFacts("models", ("ReadWriteOncePod",)))
    assert (refusal_by_environment(owner, environment, 1) is not None) is is_refused


def test_what_is_known_of_the_model_stays() -> None:
    found = Planned.while_suspended(told())
    assert (found.plan, found.commit, found.parameters) == (FITS, "a" * 40, 7)


@pytest.mark.parametrize("model", [{"source": "hf://org/new", "revision": "v1"}, {"revision": "v2"}])
def test_nothing_is_said_of_a_model_that_the_spec_no_longer_asks_for(model: dict[str, Any]) -> None:
    found = Planned.while_suspended(told(model={"source": "hf://org/old", **model}))
    assert found == Planned()


def test_a_plan_that_refused_an_edit_goes_and_what_is_known_of_the_model_stays() -> None:
    found = Planned.while_suspended(told(plan=TOO_LARGE, accepted=False))
    assert (found.plan, found.commit) == (None, "a" * 40)


def test_a_status_of_an_operator_that_named_no_source_is_kept() -> None:
    found = Planned.while_suspended(told(known=MODEL.model_copy(update={"source": None})))
    assert found.commit == "a" * 40
